//! Sums over the past that fade.

use std::num::NonZeroUsize;

/// A score an expert, whose contributions fade to about `1 / e` in `memory` tokens: in each of the `n` requests of that
/// time by the factor `1 + 1 / n`.
///
/// All scores fade alike, which leaves their order as it is; so instead of shrinking the old, new contributions grow,
/// and everything is scaled down by a power of two when they become large.
#[derive(Clone, Debug)]
pub(super) struct DecayedScores {
    scores: Vec<f64>,
    /// What a contribution of 1 adds now.
    unit: f64,
    growth: f64,
}

/// A score as an integer of the same order.
pub(super) type Score = u64;

const LARGE: f64 = 1e100;
/// 2^-300: a product with it is exact unless it falls below the smallest normal number.
const SCALE: f64 = f64::from_bits((1023 - 300) << 52);

impl DecayedScores {
    /// Creates zero scores for a pool of `universe` experts that is asked `requests_per_token` times a token.
    #[expect(clippy::cast_precision_loss, reason = "a memory beyond 2^53 requests is as good as infinite")]
    pub(super) fn new(universe: usize, requests_per_token: usize, memory: NonZeroUsize) -> DecayedScores {
        let growth = 1.0 + 1.0 / (memory.get() as f64 * requests_per_token as f64);
        DecayedScores { scores: vec![0.0; universe], unit: 1.0, growth }
    }

    /// Lets a request pass; tells whether every score was scaled, which keeps their order but not their values.
    pub(super) fn on_request(&mut self) -> bool {
        self.unit *= self.growth;
        let scale = self.unit > LARGE;
        if scale {
            self.scores.iter_mut().for_each(|score| *score *= SCALE);
            self.unit *= SCALE;
        }
        scale
    }

    /// Adds to an expert's score; negative contributions and those that are not numbers count as 0.
    pub(super) fn add(&mut self, expert: usize, contribution: f64) {
        if contribution > 0.0 {
            self.scores[expert] += contribution.min(LARGE) * self.unit;
        }
    }

    /// An expert's score.
    pub(super) fn score(&self, expert: usize) -> Score {
        // Finite and not negative, so the bits are in the order of the values.
        self.scores[expert].to_bits()
    }

    /// Whether the score of `expert` is more than `factor` times that of `other`.
    pub(super) fn exceeds(&self, expert: usize, factor: f64, other: usize) -> bool {
        self.scores[expert] > factor * self.scores[other]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A use fades to (1 + 1/8)^-8 = 0.3897 of its weight in 8 tokens, here through several scalings.
    #[test]
    fn contributions_fade() {
        let mut scores = DecayedScores::new(2, 1, NonZeroUsize::new(8).unwrap());
        for _ in 0..10_000 {
            scores.on_request();
        }
        scores.add(0, 1.0);
        for _ in 0..8 {
            scores.on_request();
        }
        scores.add(1, 0.39);
        assert!(scores.score(0) < scores.score(1) && !scores.exceeds(1, 1.01, 0));
        scores.add(0, 0.001);
        assert!(scores.score(0) > scores.score(1));
        scores.add(0, f64::NAN);
        scores.add(0, -1.0);
        assert!(!scores.exceeds(0, 1.01, 1));
    }
}
