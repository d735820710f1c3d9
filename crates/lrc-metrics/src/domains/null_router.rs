//! Routers that see less than the text.

use moe_trace::LayerId;

use crate::random::SplitMix;

/// Draws experts from a key alone: the position of a token, or its id.
///
/// The same key always gets the same experts, whatever the number of them that a token uses; in every layer others.
#[derive(Clone, Debug, Default)]
pub(super) struct NullRouter {
    seed: u64,
    /// Some order of the experts, the first few drawn anew for each token.
    experts: Vec<usize>,
}

impl NullRouter {
    pub(super) fn new(seed: u64, experts: usize) -> NullRouter {
        NullRouter { seed, experts: (0..experts).collect() }
    }

    /// The experts of a token that uses `count` of them.
    pub(super) fn route(&mut self, layer: LayerId, key: u64, count: usize) -> &[usize] {
        let mut random = SplitMix::keyed([self.seed, u64::from(layer.0), key]);
        // A shuffle from sorted order, as far as needed.
        self.experts.iter_mut().enumerate().for_each(|(expert, slot)| *slot = expert);
        for rank in 0..count {
            let other = rank + random.below(self.experts.len() - rank);
            self.experts.swap(rank, other);
        }
        &self.experts[..count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_get_equal_experts_and_all_experts_are_drawn() {
        let mut router = NullRouter::new(1, 8);
        let pair = router.route(LayerId(0), 5, 2).to_vec();
        assert_eq!(router.route(LayerId(0), 5, 4)[..2], pair);
        let mut counts = [0; 8];
        for key in 0..8000 {
            let experts = router.route(LayerId(1), key, 3);
            assert!(experts[0] != experts[1] && experts[1] != experts[2] && experts[0] != experts[2]);
            experts.iter().for_each(|&expert| counts[expert] += 1);
        }
        // 3000 expected with a standard deviation of 43.
        assert!(counts.iter().all(|count| (2800..3200).contains(count)), "{counts:?}");
    }
}
