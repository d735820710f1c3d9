//! Least frequently used.

use moe_trace::ExpertSet;

use super::heap::PriorityHeap;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Evicts the expert with the fewest requests so far; of those, the one whose last request is longest ago.
///
/// Counts are cumulative: they survive eviction. State: two counters an expert, and a heap of the residents. An access and
/// a victim cost O(log resident).
#[derive(Clone, Debug)]
pub struct Lfu {
    clock: u64,
    /// Number of requests and time of the last one.
    uses: Vec<(u64, u64)>,
    residents: PriorityHeap<(u64, u64)>,
}

impl Lfu {
    /// Creates the policy for a pool of `universe` experts and a cache of `capacity` slots.
    pub fn new(universe: usize, capacity: usize) -> Lfu {
        Lfu { clock: 0, uses: vec![(0, 0); universe], residents: PriorityHeap::new(universe, capacity) }
    }
}

impl EvictionPolicy for Lfu {
    fn on_request(&mut self, request: &Request<'_>) {
        self.clock += 1;
        for expert in request.wanted().iter() {
            let (count, last_use) = &mut self.uses[expert];
            *count += 1;
            *last_use = self.clock;
            self.residents.update(expert, self.uses[expert]);
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.residents.put(expert.index(), self.uses[expert.index()]);
    }

    fn on_evict(&mut self, expert: ExpertKey) {
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
