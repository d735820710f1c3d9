//! Router choices of a forward pass, kept until the pass has succeeded.

use std::ops::Range;

use moe_trace::{LayerId, Phase, RouterObserver, RoutingEvent};

use crate::router::Choice;

/// The choices of one router for all tokens of a ragged batch.
#[derive(Debug)]
pub(crate) struct Routed {
    pub(crate) layer: LayerId,
    pub(crate) choice: Choice,
    /// Router logits, `[tokens x experts]`; empty without a gate.
    pub(crate) logits: Vec<f32>,
}

/// The rows of a ragged batch that belong to one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) sequence: usize,
    pub(crate) token_ids: &'a [u32],
    pub(crate) range: Range<usize>,
}

impl Routed {
    /// Reports the choices for one sequence.
    pub(crate) fn report(&self, rows: &Rows<'_>, phase: Phase, observer: &mut dyn RouterObserver) {
        let Range { start, end } = rows.range;
        let slots = start * self.choice.slots..end * self.choice.slots;
        let tokens = self.choice.experts.len() / self.choice.slots.max(1);
        let experts = self.logits.len() / tokens.max(1);
        observer.routed(&RoutingEvent {
            sequence: rows.sequence,
            layer: self.layer,
            phase,
            token_ids: rows.token_ids,
            experts: &self.choice.experts[slots.clone()],
            weights: &self.choice.weights[slots],
            logits: (experts > 0).then(|| &self.logits[start * experts..end * experts]),
        });
    }
}
