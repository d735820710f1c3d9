//! 2Q: a queue for newcomers, a list for what came back.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Lets newcomers pass through a first-in-first-out queue and keeps, by recency, only those that are requested again
/// after they left it.
///
/// The queue has a quarter of the slots, at least one, and the experts that left it are remembered in half as many
/// entries as there are slots, at least one. State: two lists of the residents, one of the remembered. An access and a
/// victim cost O(1).
///
/// Source: T. Johnson, D. Shasha, "2Q: a low overhead high performance buffer management replacement algorithm", VLDB
/// 1994 (the full version, with its usual quarter and half).
#[derive(Clone, Debug)]
pub struct TwoQueue {
    lists: Lists,
    queue_slots: usize,
    history: usize,
    /// The victim that was named last.
    leaving: Option<usize>,
}

/// A1in.
const QUEUE: usize = 0;
/// Am.
const MAIN: usize = 1;
/// A1out.
const LEFT: usize = 2;
/// Wanted now, and remembered until now.
const RETURNING: usize = 3;

impl TwoQueue {
    /// Creates the policy for a pool of `universe` experts and a cache of `capacity` slots.
    pub fn new(universe: usize, capacity: usize) -> TwoQueue {
        TwoQueue {
            lists: Lists::new(universe, 4),
            queue_slots: (capacity / 4).max(1),
            history: (capacity / 2).max(1),
            leaving: None,
        }
    }
}

impl EvictionPolicy for TwoQueue {
    fn on_request(&mut self, request: &Request<'_>) {
        self.lists.clear(RETURNING);
        for expert in request.wanted().iter() {
            match self.lists.list_of(expert) {
                Some(MAIN) => self.lists.touch(expert),
                Some(LEFT) => self.lists.put(RETURNING, expert),
                _ => {}
            }
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        let returns = self.lists.list_of(expert.index()) == Some(RETURNING);
        self.lists.put(if returns { MAIN } else { QUEUE }, expert.index());
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        let from = self.lists.remove(expert.index());
        if self.leaving.take() == Some(expert.index()) && from == Some(QUEUE) {
            if self.lists.len(LEFT) == self.history
                && let Some(oldest) = self.lists.oldest(LEFT)
            {
                self.lists.remove(oldest);
            }
            self.lists.put(LEFT, expert.index());
        }
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        let order = if self.lists.len(QUEUE) > self.queue_slots { [QUEUE, MAIN] } else { [MAIN, QUEUE] };
        self.leaving = order.into_iter().find_map(|list| self.lists.oldest_outside(list, pinned));
        self.leaving.map(ExpertKey::from_index)
    }

    fn universe(&self) -> Option<usize> {
        Some(self.lists.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.lists.validate_residents(QUEUE..LEFT, resident);
        assert!(self.lists.len(LEFT) <= self.history);
    }
}
