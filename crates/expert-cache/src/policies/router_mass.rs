//! The router's weights as frequency.

use std::num::NonZeroUsize;

use moe_trace::ExpertSet;

use super::decayed::{DecayedScores, Score};
use super::heap::PriorityHeap;
use crate::{EvictionPolicy, ExpertKey, PoolShape, Request};

/// Keeps the experts that carried the most router probability lately: evicts the one of the least mass, where mass counts
/// about `1 / e` for every `memory` tokens that it is old, exactly as requests do in [`Lfru`](crate::Lfru).
///
/// It reads the mass of requests; in a request without router weights all experts have the same share of 1. Scores survive
/// eviction. State: a score an expert, and a heap of the residents. An access and a victim cost O(log resident).
///
/// Source: the score-aware caching of HybriMoE, arXiv 2504.05897, here from the weights of the chosen experts only.
#[derive(Clone, Debug)]
pub struct RouterMass {
    scores: DecayedScores,
    residents: PriorityHeap<Score>,
}

impl RouterMass {
    /// Creates the policy for a cache of `capacity` slots over a pool, with a memory of `memory` tokens.
    pub fn new(shape: PoolShape, capacity: usize, memory: NonZeroUsize) -> RouterMass {
        RouterMass {
            scores: DecayedScores::new(shape.universe(), shape.layers, memory),
            residents: PriorityHeap::new(shape.universe(), capacity),
        }
    }
}

impl EvictionPolicy for RouterMass {
    #[expect(clippy::cast_precision_loss, reason = "requests are smaller than 2^53")]
    fn step(&mut self, request: &Request<'_>) {
        if self.scores.step() {
            self.residents.update_all(|expert| self.scores.score(expert));
        }
        let alike = 1.0 / request.wanted().len() as f64;
        for expert in request.wanted().iter() {
            self.scores.add(expert, request.mass(ExpertKey::from_index(expert)).map_or(alike, f64::from));
            self.residents.update(expert, self.scores.score(expert));
        }
    }

    fn admit(&mut self, expert: ExpertKey) {
        self.residents.put(expert.index(), self.scores.score(expert.index()));
    }

    fn forget(&mut self, expert: ExpertKey) {
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.residents.lowest_outside(pinned).map(ExpertKey::from_index)
    }

    fn reads_mass(&self) -> bool {
        true
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate(resident);
    }
}
