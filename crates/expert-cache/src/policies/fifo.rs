//! First in, first out.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Evicts the expert that was loaded longest ago, however often it was used.
///
/// State: one list of the residents. An access costs nothing, a victim O(1 + pinned experts that are older).
///
/// Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2),
/// 1966.
#[derive(Clone, Debug)]
pub struct Fifo {
    residents: Lists,
}

impl Fifo {
    /// Creates the policy for a pool of `universe` experts.
    pub fn new(universe: usize) -> Fifo {
        Fifo { residents: Lists::new(universe, 1) }
    }
}

impl EvictionPolicy for Fifo {
    fn on_request(&mut self, _request: &Request<'_>) {}

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
