//! Least recently used.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Evicts the expert whose last request is longest ago.
///
/// State: one list of the residents. An access and a victim cost O(1).
///
/// Source: R. L. Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2), 1970.
#[derive(Clone, Debug)]
pub struct Lru {
    residents: Lists,
}

impl Lru {
    /// Creates the policy for a pool of `universe` experts.
    pub fn new(universe: usize) -> Lru {
        Lru { residents: Lists::new(universe, 1) }
    }
}

impl EvictionPolicy for Lru {
    fn on_request(&mut self, request: &Request<'_>) {
        request.wanted().iter().for_each(|expert| self.residents.touch(expert));
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.residents.put(0, expert.index());
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.residents.oldest_outside(0, pinned).map(ExpertKey::from_index)
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate_residents(0..1, resident);
    }
}
