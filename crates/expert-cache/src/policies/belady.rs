//! The optimum where every miss must be loaded and every request fits.

use std::cmp::Reverse;

use moe_trace::ExpertSet;

use super::heap::PriorityHeap;
use super::next_use::NextUse;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;
use crate::requests::Requests;

/// Evicts the expert whose next request is farthest away. If every request fits into the cache, no other choice of
/// victims needs fewer loads.
///
/// It must be stepped through exactly the requests it was built from. State: a list of positions an expert, 4 bytes a
/// member of every request, and a heap of the residents. An access and a victim cost O(log resident).
///
/// Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2),
/// 1966.
#[derive(Clone, Debug)]
pub struct Belady {
    next_use: NextUse,
    residents: PriorityHeap<Reverse<u32>>,
}

impl Belady {
    /// Creates the policy for the pool of `requests` and a cache of `capacity` slots.
    ///
    /// # Panics
    /// If there are `u32::MAX` requests or more.
    pub fn new(requests: &Requests, capacity: usize) -> Belady {
        Belady { next_use: NextUse::new(requests), residents: PriorityHeap::new(requests.universe(), capacity) }
    }
}

impl EvictionPolicy for Belady {
    fn on_request(&mut self, request: &Request<'_>) {
        self.next_use.on_request(request.wanted());
        for expert in request.wanted().iter() {
            self.residents.update(expert, Reverse(self.next_use.of(expert)));
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.residents.put(expert.index(), Reverse(self.next_use.of(expert.index())));
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
