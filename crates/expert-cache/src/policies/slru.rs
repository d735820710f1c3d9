//! Segmented LRU.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Keeps experts used at least twice since they were loaded in a protected half; newcomers and what overflows the
/// protected half are on probation, and the one used longest ago among these is evicted.
///
/// While the cache fills, newcomers also take what is free in the protected half. If all on probation are pinned, the
/// victim is protected. State: two lists of the residents. An access and a victim cost O(1).
///
/// Source: R. Karedla, J. S. Love, B. G. Wherry, "Caching strategies to improve disk system performance", IEEE Computer
/// 27(3), 1994.
#[derive(Clone, Debug)]
pub struct Slru {
    residents: Lists,
    /// Slots of each half.
    half: usize,
}

const PROBATION: usize = 0;
const PROTECTED: usize = 1;

impl Slru {
    /// Creates the policy for a pool of `universe` experts and a cache of `capacity` slots.
    pub fn new(universe: usize, capacity: usize) -> Slru {
        Slru { residents: Lists::new(universe, 2), half: capacity / 2 }
    }
}

impl EvictionPolicy for Slru {
    fn on_request(&mut self, request: &Request<'_>) {
        for expert in request.wanted().iter() {
            if !self.residents.contains(expert) {
                continue;
            }
            self.residents.put(PROTECTED, expert);
            if self.residents.len(PROTECTED) > self.half
                && let Some(oldest) = self.residents.oldest(PROTECTED)
            {
                self.residents.put(PROBATION, oldest);
            }
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        let fits = |segment| self.residents.len(segment) < self.half;
        let segment = if !fits(PROBATION) && fits(PROTECTED) { PROTECTED } else { PROBATION };
        self.residents.put(segment, expert.index());
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        let mut oldest =
            [PROBATION, PROTECTED].into_iter().map(|segment| self.residents.oldest_outside(segment, pinned));
        oldest.find_map(|expert| expert.map(ExpertKey::from_index))
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate_residents(0..2, resident);
        assert!(self.residents.len(PROTECTED) <= self.half);
    }
}
