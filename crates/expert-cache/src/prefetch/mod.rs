//! Which experts to load before they are wanted.

mod counts;
mod history;
mod kind;
mod markov;
mod next_layer;
mod oracle;
mod passes;
mod planner;
mod previous_token;
#[cfg(test)]
mod tests;
mod transitions;

pub use counts::PrefetchCounts;
pub use history::HistoryMatch;
pub use kind::PrefetcherKind;
pub use markov::Markov;
pub use next_layer::NextLayer;
pub use oracle::Oracle;
pub use planner::{IssuedPrefetch, PrefetchPlanner};
pub use previous_token::PreviousToken;

use std::fmt;

use moe_trace::{ExpertId, LayerId, Phase};

/// What one layer of a pass wants, as prefetchers see it.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// The layer.
    pub layer: LayerId,
    /// Whether the tokens are prefilled or decoded.
    pub phase: Phase,
    /// Wanted experts in ascending order.
    pub experts: &'a [ExpertId],
}

/// An expert that may be wanted soon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Its layer.
    pub layer: LayerId,
    /// The expert within the layer.
    pub expert: ExpertId,
    /// How likely it is wanted; only the order counts.
    pub score: f32,
}

/// Guesses the experts of layers to come from those of layers past.
pub trait Prefetcher: fmt::Debug + Send {
    /// Sees what a layer wants, layers in order of execution, and appends what it expects next, in any order.
    fn predict(&mut self, served: &Routing<'_>, out: &mut Vec<Prediction>);

    /// A sequence has ended; with several sequences served in step, one of them.
    fn sequence_end(&mut self) {}
}
