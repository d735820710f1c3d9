//! A heap of resident experts whose priorities change.

use moe_trace::ExpertSet;

/// Resident experts ordered by priority; of equal ones the lowest key comes first.
///
/// A binary heap that knows where every expert stands: a change costs O(log resident), and nothing allocates. Finding
/// the lowest that is not pinned visits the pinned ones that are lower, and their children.
#[derive(Clone, Debug)]
pub(super) struct PriorityHeap<P> {
    entries: Vec<(P, u32)>,
    /// Where every expert is among the entries.
    place: Vec<u32>,
}

const ABSENT: u32 = u32::MAX;

impl<P: Ord + Copy> PriorityHeap<P> {
    /// Creates an empty heap of at most `capacity` of `universe` experts.
    pub(super) fn new(universe: usize, capacity: usize) -> PriorityHeap<P> {
        PriorityHeap { entries: Vec::with_capacity(capacity), place: vec![ABSENT; universe] }
    }

    /// Number of experts of the pool.
    pub(super) fn universe(&self) -> usize {
        self.place.len()
    }

    /// Number of experts.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether an expert is in the heap.
    pub(super) fn contains(&self, expert: usize) -> bool {
        self.place[expert] != ABSENT
    }

    /// Priority of an expert in the heap.
    pub(super) fn priority(&self, expert: usize) -> Option<P> {
        self.contains(expert).then(|| self.entries[self.place[expert] as usize].0)
    }

    /// Adds an expert, or gives it another priority.
    pub(super) fn put(&mut self, expert: usize, priority: P) {
        if self.contains(expert) {
            self.update(expert, priority);
        } else {
            self.place[expert] = narrow(self.entries.len());
            self.entries.push((priority, narrow(expert)));
            self.rise(self.entries.len() - 1);
        }
    }

    /// Gives an expert another priority; does nothing if it is not in the heap.
    pub(super) fn update(&mut self, expert: usize, priority: P) {
        if self.contains(expert) {
            let at = self.place[expert] as usize;
            self.entries[at].0 = priority;
            self.settle(at);
        }
    }

    /// Gives every expert the priority that `priority` computes for it, in O(resident).
    pub(super) fn update_all(&mut self, priority: impl Fn(usize) -> P) {
        for entry in &mut self.entries {
            entry.0 = priority(entry.1 as usize);
        }
        (0..self.entries.len() / 2).rev().for_each(|at| self.sink(at));
    }

    /// Takes an expert out and returns its priority.
    pub(super) fn remove(&mut self, expert: usize) -> Option<P> {
        let priority = self.priority(expert)?;
        let at = self.place[expert] as usize;
        self.place[expert] = ABSENT;
        self.entries.swap_remove(at);
        if let Some(&(_, moved)) = self.entries.get(at) {
            self.place[moved as usize] = narrow(at);
            self.settle(at);
        }
        Some(priority)
    }

    /// The expert of lowest priority that is not pinned.
    pub(super) fn lowest_outside(&self, pinned: &ExpertSet) -> Option<usize> {
        let mut lowest = None;
        self.search(0, pinned, &mut lowest);
        lowest.map(|at: usize| self.entries[at].1 as usize)
    }

    fn search(&self, at: usize, pinned: &ExpertSet, lowest: &mut Option<usize>) {
        let Some(entry) = self.entries.get(at) else { return };
        if lowest.is_some_and(|found| self.entries[found] <= *entry) {
            return;
        }
        if pinned.contains(entry.1 as usize) {
            self.search(2 * at + 1, pinned, lowest);
            self.search(2 * at + 2, pinned, lowest);
        } else {
            *lowest = Some(at);
        }
    }

    fn settle(&mut self, at: usize) {
        if at > 0 && self.entries[at] < self.entries[(at - 1) / 2] {
            self.rise(at);
        } else {
            self.sink(at);
        }
    }

    fn rise(&mut self, mut at: usize) {
        while at > 0 && self.entries[at] < self.entries[(at - 1) / 2] {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let Some(&left_entry) = self.entries.get(left) else { return };
            let lower = match self.entries.get(right) {
                Some(&right_entry) if right_entry < left_entry => right,
                _ => left,
            };
            if self.entries[at] <= self.entries[lower] {
                return;
            }
            self.swap(at, lower);
            at = lower;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.entries.swap(a, b);
        self.place[self.entries[a].1 as usize] = narrow(a);
        self.place[self.entries[b].1 as usize] = narrow(b);
    }

    /// Asserts the order of the heap, and that it holds exactly the experts of `resident`.
    #[cfg(test)]
    pub(super) fn validate(&self, resident: &ExpertSet) {
        assert!((1..self.entries.len()).all(|at| self.entries[(at - 1) / 2] < self.entries[at]));
        for (at, &(_, expert)) in self.entries.iter().enumerate() {
            assert_eq!(self.place[expert as usize] as usize, at);
        }
        let members = (0..self.place.len()).filter(|&expert| self.contains(expert));
        assert_eq!(members.collect::<Vec<_>>(), resident.iter().collect::<Vec<_>>());
    }
}

fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("keys are u32")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any sequence of operations leaves what it leaves in a map that is searched as a whole.
        #[test]
        fn behaves_like_a_map(operations in proptest::collection::vec((0usize..5, 0usize..9, 0u32..4), 0..60)) {
            let mut heap = PriorityHeap::new(9, 9);
            let mut map = BTreeMap::new();
            for (operation, expert, priority) in operations {
                match operation {
                    0 | 1 => {
                        heap.put(expert, priority);
                        map.insert(expert, priority);
                    }
                    2 => {
                        heap.update(expert, priority);
                        map.entry(expert).and_modify(|value| *value = priority);
                    }
                    3 => prop_assert_eq!(heap.remove(expert), map.remove(&expert)),
                    _ => {
                        heap.update_all(|expert| narrow(expert) % (priority + 1));
                        map.iter_mut().for_each(|(&expert, value)| *value = narrow(expert) % (priority + 1));
                    }
                }
                heap.validate(&ExpertSet::from_members(9, map.keys().copied()));
                prop_assert_eq!(heap.len(), map.len());
                for pinned in [vec![], vec![0, 1, 2, 3], vec![expert], (0..9).collect()] {
                    let outside = map.iter().filter(|(member, _)| !pinned.contains(*member));
                    let lowest = outside.min_by_key(|&(member, priority)| (priority, member)).map(|(&member, _)| member);
                    prop_assert_eq!(heap.lowest_outside(&ExpertSet::from_members(9, pinned)), lowest);
                }
            }
        }
    }
}
