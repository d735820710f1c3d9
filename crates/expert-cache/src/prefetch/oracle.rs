//! Knows the future, with errors.

use std::sync::Arc;

use moe_trace::{ExpertId, Geometry};

use super::{Prediction, Prefetcher, Routing};
use crate::{CacheError, Requests, Result};

/// Expects each expert of a request to come with a given probability, and otherwise an expert that the request does not
/// want: an upper limit for prefetchers of that accuracy.
///
/// It must see exactly the requests it was built from. State: the shared requests. A prediction costs
/// O(experts of a request). Errors depend on the seed and the number of the request alone.
#[derive(Clone, Debug)]
pub struct Oracle {
    requests: Arc<Requests>,
    experts: usize,
    ahead: usize,
    /// Of 2^32.
    accuracy: u64,
    seed: u64,
    /// Requests seen.
    clock: usize,
}

impl Oracle {
    /// Predicts the request that is made `ahead` requests later; `requests` are those of all layers of the model.
    ///
    /// # Errors
    /// [`CacheError::TooSmall`] if `ahead` is 0, [`CacheError::Accuracy`] if the accuracy is not in 0..=1,
    /// [`CacheError::Universe`] if the requests are of another pool.
    pub fn new(geometry: &Geometry, ahead: usize, requests: Arc<Requests>, accuracy: f64, seed: u64) -> Result<Oracle> {
        CacheError::at_least_one("layers ahead", ahead)?;
        let expected = geometry.layers() * geometry.experts();
        if requests.universe() != expected {
            return Err(CacheError::Universe { found: requests.universe(), expected });
        }
        if !(0.0..=1.0).contains(&accuracy) {
            return Err(CacheError::Accuracy { accuracy });
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0..=2^32, rounded on purpose")]
        let accuracy = (accuracy * 4_294_967_296.0) as u64;
        Ok(Oracle { requests, experts: geometry.experts(), ahead, accuracy, seed, clock: 0 })
    }
}

impl Prefetcher for Oracle {
    fn predict(&mut self, _served: &Routing<'_>, out: &mut Vec<Prediction>) {
        let request = self.clock.saturating_add(self.ahead);
        self.clock += 1;
        let Some(layer) = self.requests.layer(request) else { return };
        let members = self.requests.members(request);
        let local = |key: u32| key as usize % self.experts;
        for &key in members {
            let random = mix(self.seed ^ mix(request as u64) ^ u64::from(key).rotate_left(40));
            let mut expert = local(key);
            if random >> 32 >= self.accuracy {
                // The first unwanted expert from a random one on.
                let start = usize::try_from(mix(random) % self.experts as u64).expect("below the number of experts");
                let wrong = (start..start + self.experts).map(|expert| expert % self.experts);
                let Some(wrong) = wrong.into_iter().find(|&wrong| members.iter().all(|&key| local(key) != wrong))
                else {
                    continue;
                };
                expert = wrong;
            }
            let expert = ExpertId(u16::try_from(expert).expect("a geometry has at most 65535 experts a layer"));
            out.push(Prediction { layer, expert, score: 1.0 });
        }
    }
}

/// The output function of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
