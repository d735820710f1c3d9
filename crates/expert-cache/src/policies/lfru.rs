//! Frequency that fades, and recency with it.

use std::num::NonZeroUsize;

use moe_trace::ExpertSet;

use super::decayed::{DecayedScores, Score};
use super::heap::PriorityHeap;
use crate::{EvictionPolicy, ExpertKey, PoolShape, Request};

/// Evicts the expert with the least combined frequency and recency: the number of its requests, each counted about `1 / e`
/// for every `memory` tokens that it is old.
///
/// Exactly, a request counts `(1 + 1 / m)^-a` at an age of `a` requests to the pool, for a memory of `m` of them:
/// `memory` times the layers. In one layer and with a memory of 1, that is half as much with every token. A short memory
/// makes it LRU, a long one LFU. Scores survive eviction. State: a score an expert, and a heap of the residents. An
/// access and a victim cost O(log resident).
///
/// Source: D. Lee et al., "LRFU: a spectrum of policies that subsumes the least recently used and least frequently used
/// policies", IEEE Transactions on Computers 50(12), 2001.
#[derive(Clone, Debug)]
pub struct Lfru {
    scores: DecayedScores,
    residents: PriorityHeap<Score>,
}

impl Lfru {
    /// Creates the policy for a cache of `capacity` slots over a pool, with a memory of `memory` tokens.
    pub fn new(shape: PoolShape, capacity: usize, memory: NonZeroUsize) -> Lfru {
        Lfru {
            scores: DecayedScores::new(shape.universe(), shape.layers, memory),
            residents: PriorityHeap::new(shape.universe(), capacity),
        }
    }
}

impl EvictionPolicy for Lfru {
    fn step(&mut self, request: &Request<'_>) {
        if self.scores.step() {
            self.residents.update_all(|expert| self.scores.score(expert));
        }
        for expert in request.wanted().iter() {
            self.scores.add(expert, 1.0);
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

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate(resident);
    }
}
