//! What usually goes with the experts of an earlier layer.

use moe_trace::Geometry;

use super::passes::LastPass;
use super::transitions::Transitions;
use super::{Prediction, Prefetcher, Routing};
use crate::{CacheError, Result};

/// Expects in a later layer the experts that most often went with those of the running layer, learning as it goes.
///
/// The score of an expert is the sum over the running layer's experts of the share of their uses that it followed. State:
/// `layers * experts^2` counters. A prediction costs O(wanted experts * experts).
///
/// Source: inter-layer expert affinity, arXiv 2401.08383, section 3.
#[derive(Clone, Debug)]
pub struct NextLayer {
    last: LastPass,
    transitions: Transitions,
}

impl NextLayer {
    /// Predicts for the layer that is executed `ahead` layers later.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`] if `ahead` is 0, [`CacheError::TooManyPairs`] for a model of very many experts.
    pub fn new(geometry: &Geometry, ahead: usize) -> Result<NextLayer> {
        CacheError::at_least_one("layers ahead", ahead)?;
        Ok(NextLayer { last: LastPass::new(geometry, ahead), transitions: Transitions::new(geometry)? })
    }
}

impl Prefetcher for NextLayer {
    fn predict(&mut self, served: &Routing<'_>, out: &mut Vec<Prediction>) {
        let source = self.last.source(served.layer);
        self.transitions.learn(source, self.last.wanted(source), served.experts);
        self.last.set(served.layer, served.experts);
        self.transitions.predict(served.layer, served.experts, self.last.target(served.layer), out);
    }

    fn sequence_end(&mut self) {
        self.last.clear();
    }
}
