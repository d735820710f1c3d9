//! The seam between a model and whoever wants to see its routing.

use crate::{LayerId, Phase};

/// One router's choices for a run of consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct RoutingEvent<'a> {
    /// The sequence's number in the running batch; free again after [`RouterObserver::sequence_end`].
    pub sequence: usize,
    /// The MoE layer.
    pub layer: LayerId,
    /// Whether the tokens are prefilled or decoded.
    pub phase: Phase,
    /// Ids of the tokens, `[tokens]`; empty where the caller does not know them.
    pub token_ids: &'a [u32],
    /// Chosen experts, `[tokens x top_k]` in rank order; [`EMPTY_SLOT`](crate::EMPTY_SLOT) where a token used fewer.
    pub experts: &'a [u16],
    /// Router weights of the chosen experts, `[tokens x top_k]`; empty where the caller has none.
    pub weights: &'a [f32],
    /// Router logits of all experts, `[tokens x experts]`; `None` where nobody asked
    /// ([`RouterObserver::wants_logits`]) or the caller has none.
    pub logits: Option<&'a [f32]>,
}

/// Sees router decisions as a model makes them.
///
/// Capture must not fail a forward pass, so the methods return nothing; an observer that can fail keeps its first error
/// for later (see [`Recorder::finish`](crate::Recorder::finish)).
pub trait RouterObserver {
    /// Called once for every layer and sequence of a forward pass that has succeeded, layers in order of execution.
    fn routed(&mut self, event: &RoutingEvent<'_>);

    /// Whether events should have logits. A model may leave them out otherwise: they are `experts / top_k` times as many
    /// values as the weights.
    fn wants_logits(&self) -> bool {
        false
    }

    /// Called when no more tokens of `sequence` will come.
    fn sequence_end(&mut self, sequence: usize) {
        let _ = sequence;
    }
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct IgnoreRouting;

impl RouterObserver for IgnoreRouting {
    fn routed(&mut self, _event: &RoutingEvent<'_>) {}
}

impl<T: RouterObserver + ?Sized> RouterObserver for &mut T {
    fn routed(&mut self, event: &RoutingEvent<'_>) {
        (**self).routed(event);
    }

    fn wants_logits(&self) -> bool {
        (**self).wants_logits()
    }

    fn sequence_end(&mut self, sequence: usize) {
        (**self).sequence_end(sequence);
    }
}
