//! How often one expert is followed by another.

use moe_trace::{ExpertId, Geometry, LayerId};

use super::Prediction;
use crate::{CacheError, Result};

/// For each layer a table of pairs: an expert wanted there, and an expert wanted later.
#[derive(Clone, Debug)]
pub(super) struct Transitions {
    experts: usize,
    /// `[layers x experts x experts]`
    pairs: Vec<u32>,
    /// `[layers x experts]`
    uses: Vec<u32>,
    /// Scratch, `[experts]`.
    scores: Vec<f32>,
}

impl Transitions {
    /// The most pairs that are counted: 512 MiB.
    pub(super) const MAX_PAIRS: usize = 1 << 27;

    pub(super) fn new(geometry: &Geometry) -> Result<Transitions> {
        let (layers, experts) = (geometry.layers(), geometry.experts());
        CacheError::pairs(layers * experts, experts, Self::MAX_PAIRS)?;
        let pairs = vec![0; layers * experts * experts];
        Ok(Transitions { experts, pairs, uses: vec![0; layers * experts], scores: vec![0.0; experts] })
    }

    /// Counts that `from` in a layer was followed by `to`.
    pub(super) fn learn(&mut self, layer: LayerId, from: &[ExpertId], to: &[ExpertId]) {
        for &one in from {
            let row = layer.index() * self.experts + one.index();
            self.uses[row] = self.uses[row].saturating_add(1);
            let pairs = &mut self.pairs[row * self.experts..(row + 1) * self.experts];
            to.iter().for_each(|other| pairs[other.index()] = pairs[other.index()].saturating_add(1));
        }
    }

    /// Predicts for `target` what followed `from` in a layer: the score of an expert is the sum over `from` of the share
    /// of uses that it followed.
    #[expect(clippy::cast_precision_loss, reason = "a score needs no more precision than f32 has")]
    pub(super) fn predict(&mut self, layer: LayerId, from: &[ExpertId], target: LayerId, out: &mut Vec<Prediction>) {
        self.scores.fill(0.0);
        for &one in from {
            let row = layer.index() * self.experts + one.index();
            if self.uses[row] > 0 {
                let share = 1.0 / self.uses[row] as f32;
                let pairs = &self.pairs[row * self.experts..(row + 1) * self.experts];
                self.scores.iter_mut().zip(pairs).for_each(|(score, &count)| *score += count as f32 * share);
            }
        }
        let scored = (0u16..).map(ExpertId).zip(&self.scores).filter(|&(_, &score)| score > 0.0);
        out.extend(scored.map(|(expert, &score)| Prediction { layer: target, expert, score }));
    }
}
