//! Least frequently used.

use moe_trace::ExpertSet;

use crate::policy::lowest_priority;
use crate::{EvictionPolicy, ExpertKey, Request};

/// Evicts the expert with the fewest requests so far; of those, the one whose last request is longest ago.
///
/// Counts are cumulative: they survive eviction. State: two counters an expert. A victim costs
/// O(universe / 64 + resident).
#[derive(Clone, Debug)]
pub struct Lfu {
    clock: u64,
    /// Number of requests and time of the last one.
    uses: Vec<(u64, u64)>,
    resident: ExpertSet,
}

impl Lfu {
    /// Creates the policy for a pool of `universe` experts.
    pub fn new(universe: usize) -> Lfu {
        Lfu { clock: 0, uses: vec![(0, 0); universe], resident: ExpertSet::new(universe) }
    }
}

impl EvictionPolicy for Lfu {
    fn step(&mut self, request: &Request<'_>) {
        self.clock += 1;
        for expert in request.wanted().iter() {
            let (count, last_use) = &mut self.uses[expert];
            *count += 1;
            *last_use = self.clock;
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
