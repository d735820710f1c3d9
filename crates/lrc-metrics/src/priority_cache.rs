//! A cache that evicts the expert of lowest priority.

use std::collections::BTreeSet;

/// What decides who stays: uses ahead, then the time of the last use.
type Priority = (u32, u64);

/// Experts in slots, ordered by priority.
#[derive(Clone, Debug)]
pub(crate) struct PriorityCache {
    slots: usize,
    order: BTreeSet<(Priority, u16)>,
    /// `[experts]`, `None` if absent.
    priorities: Vec<Option<Priority>>,
}

impl PriorityCache {
    pub(crate) fn new(slots: usize, experts: usize) -> PriorityCache {
        PriorityCache { slots, order: BTreeSet::new(), priorities: vec![None; experts] }
    }

    pub(crate) fn contains(&self, expert: u16) -> bool {
        self.priorities[usize::from(expert)].is_some()
    }

    /// Changes the priority of an expert, loading it if it is absent, in place of the lowest if the cache is full.
    pub(crate) fn put(&mut self, expert: u16, priority: Priority) {
        match self.priorities[usize::from(expert)].replace(priority) {
            Some(old) => {
                self.order.remove(&(old, expert));
            }
            None if self.order.len() == self.slots => {
                if let Some((_, lowest)) = self.order.pop_first() {
                    self.priorities[usize::from(lowest)] = None;
                }
            }
            None => {}
        }
        self.order.insert((priority, expert));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_priority_leaves() {
        let mut cache = PriorityCache::new(2, 4);
        cache.put(0, (0, 1));
        cache.put(1, (3, 0));
        cache.put(0, (5, 2));
        cache.put(2, (0, 3));
        assert_eq!([0, 1, 2, 3].map(|expert| cache.contains(expert)), [true, false, true, false]);
        cache.put(3, (1, 4));
        assert_eq!([0, 1, 2, 3].map(|expert| cache.contains(expert)), [true, false, false, true]);
    }
}
