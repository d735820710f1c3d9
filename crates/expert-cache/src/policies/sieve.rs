//! A hand that stays where it evicted.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Moves a hand from old to new over the experts in order of loading and evicts the first that was not used since the
/// hand last passed it; unlike in [`Clock`](crate::Clock), survivors keep their place, so new experts are judged early. The
/// hand skips pinned experts and leaves their marks.
///
/// State: one list of the residents, the hand, and one mark an expert. An access costs O(1), a victim O(1) amortized
/// over accesses, and the pinned experts that are skipped.
///
/// Source: Y. Zhang et al., "SIEVE is simpler than LRU", NSDI 2024.
#[derive(Clone, Debug)]
pub struct Sieve {
    residents: Lists,
    used: Vec<bool>,
    /// Where the next search begins; at the oldest if there is none.
    hand: Option<usize>,
}

impl Sieve {
    /// Creates the policy for a pool of `universe` experts.
    pub fn new(universe: usize) -> Sieve {
        Sieve { residents: Lists::new(universe, 1), used: vec![false; universe], hand: None }
    }
}

impl EvictionPolicy for Sieve {
    fn on_request(&mut self, request: &Request<'_>) {
        request.wanted().iter().for_each(|expert| self.used[expert] = self.residents.contains(expert));
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.used[expert.index()] = false;
        self.residents.put(0, expert.index());
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        if self.hand == Some(expert.index()) {
            self.hand = self.residents.newer(expert.index());
        }
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        // After one round no evictable expert has a mark.
        for _ in 0..2 * self.residents.len(0) {
            let expert = self.hand.or_else(|| self.residents.oldest(0))?;
            if !pinned.contains(expert) && !std::mem::take(&mut self.used[expert]) {
                self.hand = Some(expert);
                return Some(ExpertKey::from_index(expert));
            }
            self.hand = self.residents.newer(expert);
        }
        None
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate_residents(0..1, resident);
        assert!(self.hand.is_none_or(|hand| resident.contains(hand)));
    }
}
