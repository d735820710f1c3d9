//! Experts drawn by a seeded hash, whatever the text means.

use candle_core::Tensor;
use moe_trace::LayerId;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::router::choice::{Choice, TopK};
use crate::router::strategy::{Strategy, TokenView};

/// What of a token decides its experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrawnBy {
    TokenId,
    Position,
}

/// A token's experts are drawn from all, all sets alike; the same key draws the same experts in a layer.
#[derive(Clone, Debug)]
pub(crate) struct Drawn {
    pub(crate) by: DrawnBy,
    pub(crate) seed: u64,
    pub(crate) layer: LayerId,
    pub(crate) top_k: TopK,
}

impl Drawn {
    /// The experts of a key, in the order in which they were drawn.
    fn experts(&self, key: u32) -> impl Iterator<Item = u16> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(u64::from(self.layer.0) << 32 | u64::from(key));
        let drawn = index::sample(&mut random, self.top_k.experts, self.top_k.top_k).into_iter();
        drawn.map(|expert| u16::try_from(expert).expect("a geometry has at most u16::MAX experts"))
    }
}

impl Strategy for Drawn {
    fn choose(&self, _: &[f32], tokens: &TokenView<'_>) -> Result<Choice> {
        let keys = match self.by {
            DrawnBy::TokenId => tokens.ids,
            DrawnBy::Position => tokens.positions,
        };
        let slots = self.top_k.top_k;
        let experts: Vec<u16> = keys.iter().flat_map(|&key| self.experts(key)).collect();
        Ok(Choice { weights: vec![1.0 / slots as f32; experts.len()], experts, slots })
    }

    /// `1 / top_k` for each drawn expert, without a gradient.
    fn scores(&self, x: &Tensor, tokens: &TokenView<'_>) -> Result<Tensor> {
        let (experts, choice) = (self.top_k.experts, self.choose(&[], tokens)?);
        let mut scores = vec![0f32; tokens.ids.len() * experts];
        for (row, chosen) in scores.chunks_exact_mut(experts).zip(choice.experts.chunks_exact(choice.slots)) {
            chosen.iter().for_each(|&expert| row[usize::from(expert)] = choice.weights[0]);
        }
        Ok(Tensor::from_vec(scores, (tokens.ids.len(), experts), x.device())?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn router(by: DrawnBy, seed: u64, layer: u16) -> Drawn {
        Drawn { by, seed, layer: LayerId(layer), top_k: TopK { experts: 8, top_k: 3, normalise: false } }
    }

    #[test]
    fn the_key_alone_decides() {
        let tokens = TokenView { ids: &[5, 9, 5], positions: &[0, 1, 2], domains: &[] };
        let choose = |router: Drawn| router.choose(&[], &tokens).unwrap().experts;
        let by_id = choose(router(DrawnBy::TokenId, 1, 0));
        assert_eq!(by_id[..3], by_id[6..]);
        assert_ne!(by_id[..3], by_id[3..6]);
        let by_position = choose(router(DrawnBy::Position, 1, 0));
        assert_ne!(by_position[..3], by_position[6..]);
        assert_ne!(by_id, choose(router(DrawnBy::TokenId, 2, 0)));
        assert_ne!(by_id, choose(router(DrawnBy::TokenId, 1, 1)));
    }

    #[test]
    fn experts_are_distinct_and_equally_likely() {
        let router = router(DrawnBy::TokenId, 7, 2);
        let mut counts = [0; 8];
        for key in 0..8000 {
            let experts: BTreeSet<u16> = router.experts(key).collect();
            assert_eq!(experts.len(), 3);
            experts.into_iter().for_each(|expert| counts[usize::from(expert)] += 1);
        }
        // 3000 each, with a standard deviation of some 43.
        assert!(counts.iter().all(|count| (2800..3200).contains(count)), "{counts:?}");
    }
}
