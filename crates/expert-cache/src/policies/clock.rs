//! A second chance for what was used.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Sweeps a hand over the experts in order of loading: one used since the hand last passed loses its mark and stays, the
/// first without a mark is evicted. The hand passes pinned experts and leaves their marks.
///
/// State: one list of the residents, oldest under the hand, and one mark an expert. An access costs O(1), a victim
/// O(1) amortized over accesses.
///
/// Source: F. J. Corbató, "A paging experiment with the Multics system", MIT Project MAC, 1968.
#[derive(Clone, Debug)]
pub struct Clock {
    residents: Lists,
    used: Vec<bool>,
}

impl Clock {
    /// Creates the policy for a pool of `universe` experts.
    pub fn new(universe: usize) -> Clock {
        Clock { residents: Lists::new(universe, 1), used: vec![false; universe] }
    }
}

impl EvictionPolicy for Clock {
    fn on_request(&mut self, request: &Request<'_>) {
        request.wanted().iter().for_each(|expert| self.used[expert] = self.residents.contains(expert));
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.used[expert.index()] = false;
        self.residents.put(0, expert.index());
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        // After one sweep no evictable expert has a mark.
        for _ in 0..2 * self.residents.len(0) {
            let expert = self.residents.oldest(0)?;
            if !pinned.contains(expert) && !std::mem::take(&mut self.used[expert]) {
                return Some(ExpertKey::from_index(expert));
            }
            self.residents.touch(expert);
        }
        None
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate_residents(0..1, resident);
    }
}
