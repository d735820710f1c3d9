//! Least recently used.

use moe_trace::ExpertSet;

use crate::policy::lowest_priority;
use crate::{EvictionPolicy, ExpertKey, Request};

/// Evicts the expert whose last request is longest ago.
///
/// Experts of one request share its time; of those the lowest key goes first. State: one counter an expert. A victim
/// costs O(universe / 64 + resident).
#[derive(Clone, Debug)]
pub struct Lru {
    clock: u64,
    last_use: Vec<u64>,
    resident: ExpertSet,
}

impl Lru {
    /// Creates the policy for a pool of `universe` experts.
    pub fn new(universe: usize) -> Lru {
        Lru { clock: 0, last_use: vec![0; universe], resident: ExpertSet::new(universe) }
    }
}

impl EvictionPolicy for Lru {
    fn step(&mut self, request: &Request<'_>) {
        self.clock += 1;
        for expert in request.wanted().iter() {
            self.last_use[expert] = self.clock;
        }
    }

    fn admit(&mut self, expert: ExpertKey) {
        self.resident.insert(expert.index());
    }

    fn forget(&mut self, expert: ExpertKey) {
        self.resident.remove(expert.index());
    }

    fn victim(&mut self, pinned: &ExpertSet) -> Option<ExpertKey> {
        lowest_priority(&self.resident, pinned, |expert| self.last_use[expert])
    }
}
