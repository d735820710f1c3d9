//! Least frequently used since it was loaded.

use moe_trace::ExpertSet;

use super::heap::PriorityHeap;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Evicts the expert with the fewest requests since it was loaded, loading included; of those, the one whose last request
/// is longest ago.
///
/// An evicted expert starts anew when it returns. State: a heap of the residents with two counters each. An access and a
/// victim cost O(log resident).
#[derive(Clone, Debug)]
pub struct LfuInCache {
    clock: u64,
    /// By number of requests, and time of the last one.
    residents: PriorityHeap<(u64, u64)>,
}

impl LfuInCache {
    /// Creates the policy for a pool of `universe` experts and a cache of `capacity` slots.
    pub fn new(universe: usize, capacity: usize) -> LfuInCache {
        LfuInCache { clock: 0, residents: PriorityHeap::new(universe, capacity) }
    }
}

impl EvictionPolicy for LfuInCache {
    fn on_request(&mut self, request: &Request<'_>) {
        self.clock += 1;
        for expert in request.wanted().iter() {
            if let Some((count, _)) = self.residents.priority(expert) {
                self.residents.update(expert, (count + 1, self.clock));
            }
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.residents.put(expert.index(), (1, self.clock));
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
