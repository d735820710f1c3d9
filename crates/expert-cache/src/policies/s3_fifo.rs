//! S3-FIFO: three queues.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Lets newcomers pass through a small queue; those used twice in it, or requested again soon after they left it, go to
/// the main queue, where the oldest goes round once for every recent use, up to three.
///
/// The small queue has a tenth of the slots, at least one; nine tenths as many experts as there are slots are
/// remembered. Until the first eviction, newcomers that do not fit into the small queue enter the main one. Pinned
/// experts keep their place and their uses. State: two lists of the residents, one of the remembered, and a counter an
/// expert. An access costs O(1), a victim O(1) amortized over accesses, and the pinned experts that are skipped.
///
/// Source: J. Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
#[derive(Clone, Debug)]
pub struct S3Fifo {
    lists: Lists,
    uses: Vec<u8>,
    small_slots: usize,
    main_slots: usize,
    history: usize,
    has_evicted: bool,
    /// The victim that was named last.
    leaving: Option<usize>,
}

const SMALL: usize = 0;
const MAIN: usize = 1;
const LEFT: usize = 2;
/// Wanted now, and remembered until now.
const RETURNING: usize = 3;

/// Uses that let an expert of the small queue into the main one.
const PROMOTING_USES: u8 = 2;
const MOST_USES: u8 = 3;

impl S3Fifo {
    /// Creates the policy for a pool of `universe` experts and a cache of `capacity` slots.
    pub fn new(universe: usize, capacity: usize) -> S3Fifo {
        let small_slots = (capacity / 10).max(1);
        S3Fifo {
            lists: Lists::new(universe, 4),
            uses: vec![0; universe],
            small_slots,
            main_slots: capacity - small_slots,
            history: capacity * 9 / 10,
            has_evicted: false,
            leaving: None,
        }
    }

    fn victim_of_small(&mut self, pinned: &ExpertSet) -> Option<usize> {
        let mut next = self.lists.oldest(SMALL);
        while let Some(expert) = next {
            next = self.lists.newer(expert);
            if pinned.contains(expert) {
                continue;
            }
            if self.uses[expert] < PROMOTING_USES {
                return Some(expert);
            }
            self.uses[expert] = 0;
            self.lists.put(MAIN, expert);
        }
        None
    }

    fn victim_of_main(&mut self, pinned: &ExpertSet) -> Option<usize> {
        // Each round takes one use of every evictable expert.
        for _ in 0..=MOST_USES {
            let mut next = self.lists.oldest(MAIN);
            for _ in 0..self.lists.len(MAIN) {
                let expert = next?;
                next = self.lists.newer(expert);
                if pinned.contains(expert) {
                    continue;
                }
                if self.uses[expert] == 0 {
                    return Some(expert);
                }
                self.uses[expert] -= 1;
                self.lists.touch(expert);
            }
        }
        None
    }
}

impl EvictionPolicy for S3Fifo {
    fn on_request(&mut self, request: &Request<'_>) {
        self.lists.clear(RETURNING);
        for expert in request.wanted().iter() {
            match self.lists.list_of(expert) {
                Some(SMALL | MAIN) => self.uses[expert] = (self.uses[expert] + 1).min(MOST_USES),
                Some(LEFT) => self.lists.put(RETURNING, expert),
                _ => {}
            }
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        let expert = expert.index();
        let returns = self.lists.list_of(expert) == Some(RETURNING);
        let overflows = !self.has_evicted && self.lists.len(SMALL) >= self.small_slots;
        self.uses[expert] = 0;
        self.lists.put(if returns || overflows { MAIN } else { SMALL }, expert);
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        let from = self.lists.remove(expert.index());
        if self.leaving.take() == Some(expert.index()) && from == Some(SMALL) && self.history > 0 {
            if self.lists.len(LEFT) == self.history
                && let Some(oldest) = self.lists.oldest(LEFT)
            {
                self.lists.remove(oldest);
            }
            self.lists.put(LEFT, expert.index());
        }
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.has_evicted = true;
        self.leaving = if self.lists.len(MAIN) > self.main_slots {
            self.victim_of_main(pinned).or_else(|| self.victim_of_small(pinned))
        } else {
            self.victim_of_small(pinned)
        };
        // The small queue may just have sent its last expert to the main one.
        self.leaving = self.leaving.or_else(|| self.victim_of_main(pinned));
        self.leaving.map(ExpertKey::from_index)
    }

    fn universe(&self) -> Option<usize> {
        Some(self.lists.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.lists.validate_residents(SMALL..LEFT, resident);
        assert!(self.lists.len(LEFT) <= self.history);
    }
}
