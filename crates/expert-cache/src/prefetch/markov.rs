//! What usually follows in the same layer.

use moe_trace::Geometry;

use super::passes::LastPass;
use super::transitions::Transitions;
use super::{Prediction, Prefetcher, Routing};
use crate::{CacheError, Result};

/// Expects in a layer the experts that most often followed, one token later, those of its last request: a Markov chain a
/// layer, learned as it goes.
///
/// The score of an expert is the sum over the last experts of the share of their uses that it followed. State:
/// `layers * experts^2` counters. A prediction costs O(wanted experts * experts).
///
/// Source: D. Joseph, D. Grunwald, "Prefetching using Markov predictors", ISCA 1997, with experts in the place of
/// addresses.
#[derive(Clone, Debug)]
pub struct Markov {
    last: LastPass,
    transitions: Transitions,
}

impl Markov {
    /// Predicts for the layer that is executed `ahead` layers later.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`] if `ahead` is 0, [`CacheError::TooManyPairs`] for a model of very many experts.
    pub fn new(geometry: &Geometry, ahead: usize) -> Result<Markov> {
        CacheError::at_least_one("layers ahead", ahead)?;
        Ok(Markov { last: LastPass::new(geometry, ahead), transitions: Transitions::new(geometry)? })
    }
}

impl Prefetcher for Markov {
    fn predict(&mut self, served: &Routing<'_>, out: &mut Vec<Prediction>) {
        self.transitions.learn(served.layer, self.last.wanted(served.layer), served.experts);
        self.last.set(served.layer, served.experts);
        let target = self.last.target(served.layer);
        self.transitions.predict(target, self.last.wanted(target), target, out);
    }

    fn sequence_end(&mut self) {
        self.last.clear();
    }
}
