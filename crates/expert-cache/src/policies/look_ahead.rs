//! A cache that knows the next requests: the engine's counterpart of SCH.

use std::sync::Arc;

use moe_trace::ExpertSet;

use super::heap::PriorityHeap;
use crate::error::{CacheError, Result};
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;
use crate::requests::Requests;

/// Evicts the expert used least in a window of requests that starts with the current one; of those, the one whose last
/// request is longest ago.
///
/// It must be stepped through exactly the requests it was built from. State: two counters an expert, the shared
/// requests, and a heap of the residents. An access and a victim cost O(log resident).
///
/// Source: the look-ahead cache of SCH, arXiv 2505.16056, section 2.3.
#[derive(Clone, Debug)]
pub struct LookAhead {
    requests: Arc<Requests>,
    window: usize,
    /// Requests stepped through.
    clock: usize,
    /// Uses in the window, and time of the last use.
    uses: Vec<(u32, usize)>,
    residents: PriorityHeap<(u32, usize)>,
}

impl LookAhead {
    /// Creates the policy for the pool of `requests` and a cache of `capacity` slots, looking at `window` requests at a
    /// time.
    ///
    /// # Errors
    /// [`CacheError::Window`] for an empty window.
    pub fn new(requests: Arc<Requests>, capacity: usize, window: usize) -> Result<LookAhead> {
        if window == 0 {
            return Err(CacheError::Window { window });
        }
        let mut uses = vec![(0, 0); requests.universe()];
        // The first step brings in the last request of the first window.
        for request in 0..(window - 1).min(requests.len()) {
            requests.members(request).iter().for_each(|&expert| uses[expert as usize].0 += 1);
        }
        let residents = PriorityHeap::new(requests.universe(), capacity);
        Ok(LookAhead { requests, window, clock: 0, uses, residents })
    }
}

impl EvictionPolicy for LookAhead {
    fn on_request(&mut self, request: &Request<'_>) {
        if let Some(left) = self.clock.checked_sub(1) {
            for expert in self.requests.members(left).iter().map(|&expert| expert as usize) {
                self.uses[expert].0 -= 1;
                self.residents.update(expert, self.uses[expert]);
            }
        }
        let entering = self.clock.saturating_add(self.window - 1);
        for expert in self.requests.members(entering).iter().map(|&expert| expert as usize) {
            self.uses[expert].0 += 1;
            self.residents.update(expert, self.uses[expert]);
        }
        self.clock += 1;
        for expert in request.wanted().iter() {
            self.uses[expert].1 = self.clock;
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
