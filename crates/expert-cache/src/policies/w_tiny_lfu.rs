//! W-TinyLFU: a window, and a contest for entering behind it.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Lets newcomers into a small window by recency; what leaves the window enters a segmented LRU only if it was requested
/// more often, lately, than the expert that it would displace. The loser is evicted. While the cache fills nobody has to
/// lose.
///
/// The window has a hundredth of the slots, at least one; four fifths of the others are protected. As keys are dense,
/// requests are counted exactly where the source uses a sketch: counters stop at 15; when ten requests a slot have been
/// counted, they are halved, and so is that number. A request with several newcomers makes the window as large as it
/// needs, and so it stays. State: three lists of the residents and a counter an expert. An access costs O(1) amortized
/// as long as the pool is not hundreds of times the cache, a victim O(1).
///
/// Source: G. Einziger, R. Friedman, B. Manes, "TinyLFU: a highly efficient cache admission policy", ACM TOS 13(4), 2017.
#[derive(Clone, Debug)]
pub struct WTinyLfu {
    residents: Lists,
    counts: Vec<u8>,
    counted: usize,
    capacity: usize,
    window_slots: usize,
    protected_slots: usize,
    has_evicted: bool,
}

const WINDOW: usize = 0;
const PROBATION: usize = 1;
const PROTECTED: usize = 2;

const MOST_COUNTED: u8 = 15;
const COUNTED_A_SLOT: usize = 10;

impl WTinyLfu {
    /// Creates the policy for a pool of `universe` experts and a cache of `capacity` slots.
    pub fn new(universe: usize, capacity: usize) -> WTinyLfu {
        let window_slots = (capacity / 100).max(1);
        WTinyLfu {
            residents: Lists::new(universe, 3),
            counts: vec![0; universe],
            counted: 0,
            capacity,
            window_slots,
            protected_slots: (capacity - window_slots) * 4 / 5,
            has_evicted: false,
        }
    }

    fn count(&mut self, expert: usize) {
        self.counts[expert] = (self.counts[expert] + 1).min(MOST_COUNTED);
        self.counted += 1;
        if self.counted >= COUNTED_A_SLOT * self.capacity {
            self.counted /= 2;
            self.counts.iter_mut().for_each(|count| *count /= 2);
        }
    }

    fn protect(&mut self, expert: usize) {
        self.residents.put(PROTECTED, expert);
        if self.residents.len(PROTECTED) > self.protected_slots
            && let Some(oldest) = self.residents.oldest(PROTECTED)
        {
            self.residents.put(PROBATION, oldest);
        }
    }
}

impl EvictionPolicy for WTinyLfu {
    fn on_request(&mut self, request: &Request<'_>) {
        for expert in request.wanted().iter() {
            self.count(expert);
            match self.residents.list_of(expert) {
                Some(WINDOW) => self.residents.touch(expert),
                Some(_) => self.protect(expert),
                None => {}
            }
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.residents.put(WINDOW, expert.index());
        if !self.has_evicted
            && self.residents.len(WINDOW) > self.window_slots
            && let Some(oldest) = self.residents.oldest(WINDOW)
        {
            self.residents.put(PROBATION, oldest);
        }
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.has_evicted = true;
        let oldest = |list| self.residents.oldest_outside(list, pinned);
        let candidate = if self.residents.len(WINDOW) < self.window_slots { None } else { oldest(WINDOW) };
        let defender = oldest(PROBATION).or_else(|| oldest(PROTECTED));
        let victim = match (candidate, defender) {
            (Some(candidate), Some(defender)) if self.counts[candidate] > self.counts[defender] => {
                self.residents.put(PROBATION, candidate);
                Some(defender)
            }
            (Some(candidate), _) => Some(candidate),
            (None, Some(defender)) => Some(defender),
            (None, None) => oldest(WINDOW),
        };
        victim.map(ExpertKey::from_index)
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate_residents(WINDOW..PROTECTED + 1, resident);
        assert!(self.residents.len(PROTECTED) <= self.protected_slots);
    }
}
