//! ARC: recency against frequency, adapted.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Keeps experts used once (T1) and experts used again (T2) in two lists by recency, remembers what either evicted (B1,
/// B2), and moves the share of T1 towards the list whose evictions are requested again.
///
/// # Steps
/// Cases in the code are those of the paper's figure 4, where `x` is a wanted expert, `c` the capacity, and `p` the slots
/// that T1 should have: I, `x` is in T1 or T2; II, `x` is in B1; III, `x` is in B2; IV, `x` is in none. The paper evicts
/// (REPLACE) and loads in one step. Here a request is judged first and its loads follow, so an expert of case II or III
/// waits in the list `FROM_B1` or `FROM_B2` in between.
///
/// T1 and B1 together have at most as many entries as the cache has slots, all four at most twice as many. State: four
/// lists and the share. An access and a victim cost O(1).
///
/// Source: N. Megiddo, D. S. Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003.
#[derive(Clone, Debug)]
pub struct AdaptiveReplacement {
    lists: Lists,
    capacity: usize,
    /// Slots that T1 should have.
    share: f64,
    /// The victim that was named last.
    leaving: Option<usize>,
}

const T1: usize = 0;
const T2: usize = 1;
const B1: usize = 2;
const B2: usize = 3;
/// Wanted now, and in B1 until now.
const FROM_B1: usize = 4;
/// Wanted now, and in B2 until now.
const FROM_B2: usize = 5;

impl AdaptiveReplacement {
    /// Creates the policy for a pool of `universe` experts and a cache of `capacity` slots.
    pub fn new(universe: usize, capacity: usize) -> AdaptiveReplacement {
        AdaptiveReplacement { lists: Lists::new(universe, 6), capacity, share: 0.0, leaving: None }
    }

    #[expect(clippy::cast_precision_loss, reason = "lists are shorter than 2^52")]
    fn size(&self, list: usize) -> f64 {
        self.lists.len(list) as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "capacities are below 2^52")]
    /// Case II, adaptation: `p = min(p + d, c)`, where `d` is 1 or, if it is more, `|B2| / |B1|`.
    fn favour_recency(&mut self) {
        self.share = (self.share + (self.size(B2) / self.size(B1)).max(1.0)).min(self.capacity as f64);
    }

    /// Case III, adaptation: `p = max(p - d, 0)`, where `d` is 1 or, if it is more, `|B1| / |B2|`.
    fn favour_frequency(&mut self) {
        self.share = (self.share - (self.size(B1) / self.size(B2)).max(1.0)).max(0.0);
    }
}

impl EvictionPolicy for AdaptiveReplacement {
    fn on_request(&mut self, request: &Request<'_>) {
        // An expert of the request before that was not loaded has left B1 or B2 for good.
        self.lists.clear(FROM_B1);
        self.lists.clear(FROM_B2);
        for expert in request.wanted().iter() {
            match self.lists.list_of(expert) {
                // Case I: to the most recent place of T2.
                Some(T1 | T2) => self.lists.put(T2, expert),
                // Case II. The lengths of B1 and B2 are those before `x` leaves.
                Some(B1) => {
                    self.favour_recency();
                    self.lists.put(FROM_B1, expert);
                }
                // Case III.
                Some(B2) => {
                    self.favour_frequency();
                    self.lists.put(FROM_B2, expert);
                }
                // Case IV adapts nothing.
                _ => {}
            }
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        // Cases II and III: to T2. Case IV: to T1.
        let returns = matches!(self.lists.list_of(expert.index()), Some(FROM_B1 | FROM_B2));
        self.lists.put(if returns { T2 } else { T1 }, expert.index());
        // Case IV (A), after the load: T1 and B1 have at most `c` entries, so the oldest of B1 is forgotten.
        while self.lists.len(T1) + self.lists.len(B1) > self.capacity
            && let Some(oldest) = self.lists.oldest(B1)
        {
            self.lists.remove(oldest);
        }
        // Case IV (B), after the load: all lists have at most `2 c` entries, so the oldest of B2 is forgotten.
        while [T1, T2, B1, B2].map(|list| self.lists.len(list)).iter().sum::<usize>() > 2 * self.capacity
            && let Some(oldest) = self.lists.oldest(B2)
        {
            self.lists.remove(oldest);
        }
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        let from = self.lists.remove(expert.index());
        // REPLACE: the victim of T1 becomes the most recent of B1, the victim of T2 that of B2.
        if self.leaving.take() == Some(expert.index()) {
            self.lists.put(if from == Some(T1) { B1 } else { B2 }, expert.index());
        }
    }

    fn victim(&mut self, incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        let from_b2 = self.lists.list_of(incoming.index()) == Some(FROM_B2);
        // REPLACE(x, p): the oldest of T1 if T1 has more than `p` entries, or exactly `p` and `x` was in B2; else of T2.
        let recent = self.size(T1);
        let is_above_share = recent > self.share || (from_b2 && recent >= self.share);
        // If all of the one list is pinned, the other gives the victim.
        let order = if recent > 0.0 && is_above_share { [T1, T2] } else { [T2, T1] };
        self.leaving = order.into_iter().find_map(|list| self.lists.oldest_outside(list, pinned));
        self.leaving.map(ExpertKey::from_index)
    }

    fn universe(&self) -> Option<usize> {
        Some(self.lists.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.lists.validate_residents(T1..B1, resident);
        assert!(self.lists.len(T1) + self.lists.len(B1) <= self.capacity);
        assert!([T1, T2, B1, B2].map(|list| self.lists.len(list)).iter().sum::<usize>() <= 2 * self.capacity);
    }
}
