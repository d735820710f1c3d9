//! Anyone.

use moe_trace::ExpertSet;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Evicts a resident expert drawn uniformly, from a seeded generator.
///
/// State: the residents in a vector, and where each stands. An access costs nothing, a victim O(1) and the pinned ones
/// that are drawn.
#[derive(Clone, Debug)]
pub struct RandomChoice {
    generator: ChaCha8Rng,
    residents: Vec<usize>,
    place: Vec<usize>,
}

const ABSENT: usize = usize::MAX;

impl RandomChoice {
    /// Creates the policy for a pool of `universe` experts and a cache of `capacity` slots.
    pub fn new(universe: usize, capacity: usize, seed: u64) -> RandomChoice {
        RandomChoice {
            generator: ChaCha8Rng::seed_from_u64(seed),
            residents: Vec::with_capacity(capacity),
            place: vec![ABSENT; universe],
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.residents.swap(a, b);
        self.place[self.residents[a]] = a;
        self.place[self.residents[b]] = b;
    }
}

impl EvictionPolicy for RandomChoice {
    fn on_request(&mut self, _request: &Request<'_>) {}

    fn on_insert(&mut self, expert: ExpertKey) {
        self.place[expert.index()] = self.residents.len();
        self.residents.push(expert.index());
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        let at = std::mem::replace(&mut self.place[expert.index()], ABSENT);
        if at != ABSENT {
            self.residents.swap_remove(at);
            if let Some(&moved) = self.residents.get(at) {
                self.place[moved] = at;
            }
        }
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        // Draws without replacement: what was drawn and is pinned goes to the front.
        for drawn in 0..self.residents.len() {
            let at = self.generator.random_range(drawn..self.residents.len());
            let expert = self.residents[at];
            if !pinned.contains(expert) {
                return Some(ExpertKey::from_index(expert));
            }
            self.swap(drawn, at);
        }
        None
    }

    fn universe(&self) -> Option<usize> {
        Some(self.place.len())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        let mut members = self.residents.clone();
        members.sort_unstable();
        assert_eq!(members, resident.iter().collect::<Vec<_>>());
        assert!((0..self.residents.len()).all(|at| self.place[self.residents[at]] == at));
    }
}
