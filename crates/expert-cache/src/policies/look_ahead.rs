//! A cache that knows the next requests: the engine's counterpart of SCH.

use std::sync::Arc;

use moe_trace::ExpertSet;

use crate::policy::lowest_priority;
use crate::{CacheError, EvictionPolicy, ExpertKey, Request, Requests, Result};

/// Evicts the expert used least in a window of requests that starts with the current one; of those, the one whose last
/// request is longest ago.
///
/// It must be stepped through exactly the requests it was built from. State: two counters an expert and the shared
/// requests. A step costs O(size of two requests), a victim O(universe / 64 + resident).
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
    resident: ExpertSet,
}

impl LookAhead {
    /// Creates the policy for the pool of `requests`, looking at `window` of them at a time.
    ///
    /// # Errors
    /// [`CacheError::Window`] for an empty window.
    pub fn new(requests: Arc<Requests>, window: usize) -> Result<LookAhead> {
        if window == 0 {
            return Err(CacheError::Window { window });
        }
        let mut uses = vec![(0, 0); requests.universe()];
        // The first step brings in the last request of the first window.
        for request in 0..(window - 1).min(requests.len()) {
            requests.members(request).iter().for_each(|&expert| uses[expert as usize].0 += 1);
        }
        let resident = ExpertSet::new(requests.universe());
        Ok(LookAhead { requests, window, clock: 0, uses, resident })
    }
}

impl EvictionPolicy for LookAhead {
    fn step(&mut self, request: &Request<'_>) {
        if let Some(left) = self.clock.checked_sub(1) {
            self.requests.members(left).iter().for_each(|&expert| self.uses[expert as usize].0 -= 1);
        }
        let entering = self.clock.saturating_add(self.window - 1);
        self.requests.members(entering).iter().for_each(|&expert| self.uses[expert as usize].0 += 1);
        self.clock += 1;
        for expert in request.wanted().iter() {
            self.uses[expert].1 = self.clock;
        }
    }

    fn admit(&mut self, expert: ExpertKey) {
        self.resident.insert(expert.index());
    }

    fn forget(&mut self, expert: ExpertKey) {
        self.resident.remove(expert.index());
    }

    fn victim(&mut self, pinned: &ExpertSet) -> Option<ExpertKey> {
        lowest_priority(&self.resident, pinned, |expert| self.uses[expert])
    }
}
