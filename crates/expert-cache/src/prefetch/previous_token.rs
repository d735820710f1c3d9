//! The experts of the previous token again.

use moe_trace::{Geometry, LayerId};

use super::passes::LastPass;
use super::{Prediction, Prefetcher, Routing};
use crate::{CacheError, Result};

/// Expects that a layer wants what it wanted for the previous token.
///
/// State: the last pass. A prediction costs O(experts of the last request to the layer).
///
/// Source: the temporal locality that LRU caches of experts rest on, arXiv 2312.17238, section 3.1.
#[derive(Clone, Debug)]
pub struct PreviousToken {
    last: LastPass,
}

impl PreviousToken {
    /// Predicts for the layer that is executed `ahead` layers later.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`] if `ahead` is 0.
    pub fn new(geometry: &Geometry, ahead: usize) -> Result<PreviousToken> {
        CacheError::at_least_one("layers ahead", ahead)?;
        Ok(PreviousToken { last: LastPass::new(geometry, ahead) })
    }
}

impl Prefetcher for PreviousToken {
    fn predict(&mut self, served: &Routing<'_>, out: &mut Vec<Prediction>) {
        self.last.set(served.layer, served.experts);
        let layer: LayerId = self.last.target(served.layer);
        out.extend(self.last.wanted(layer).iter().map(|&expert| Prediction { layer, expert, score: 1.0 }));
    }

    fn sequence_end(&mut self) {
        self.last.clear();
    }
}
