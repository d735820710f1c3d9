//! Linked lists over the keys of a pool.

use moe_trace::ExpertSet;

/// Several lists of experts, every expert in at most one of them, ordered from oldest to newest.
///
/// Every operation but the walks is O(1), and none allocates: each list is a ring of links through one vector, closed by
/// a sentinel behind the experts.
///
/// ```text
/// nodes: | expert 0 | expert 1 | ... | sentinel of list 0 | sentinel of list 1 | ...
/// sentinel.newer is the oldest member, sentinel.older the newest
/// ```
#[derive(Clone, Debug)]
pub(super) struct Lists {
    nodes: Vec<Node>,
    lengths: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    older: u32,
    newer: u32,
    list: u32,
}

const NO_LIST: u32 = u32::MAX;

impl Lists {
    /// Creates `lists` empty lists over a pool of `universe` experts.
    pub(super) fn new(universe: usize, lists: usize) -> Lists {
        let node = |at| Node { older: narrow(at), newer: narrow(at), list: NO_LIST };
        Lists { nodes: (0..universe + lists).map(node).collect(), lengths: vec![0; lists] }
    }

    /// Number of experts of the pool.
    pub(super) fn universe(&self) -> usize {
        self.nodes.len() - self.lengths.len()
    }

    /// Number of members of a list.
    pub(super) fn len(&self, list: usize) -> usize {
        self.lengths[list]
    }

    /// The list that an expert is in.
    pub(super) fn list_of(&self, expert: usize) -> Option<usize> {
        let list = self.nodes[expert].list;
        (list != NO_LIST).then_some(list as usize)
    }

    /// Whether an expert is in any list.
    pub(super) fn contains(&self, expert: usize) -> bool {
        self.nodes[expert].list != NO_LIST
    }

    /// Makes an expert the newest of a list, wherever it was.
    pub(super) fn put(&mut self, list: usize, expert: usize) {
        self.remove(expert);
        self.lengths[list] += 1;
        self.nodes[expert].list = narrow(list);
        self.link_newest(list, expert);
    }

    /// Makes a member the newest of its list; does nothing for an expert in no list.
    pub(super) fn touch(&mut self, expert: usize) {
        if let Some(list) = self.list_of(expert) {
            self.unlink(expert);
            self.link_newest(list, expert);
        }
    }

    /// Takes an expert out of its list and returns that list.
    pub(super) fn remove(&mut self, expert: usize) -> Option<usize> {
        let list = self.list_of(expert)?;
        self.unlink(expert);
        self.lengths[list] -= 1;
        self.nodes[expert].list = NO_LIST;
        Some(list)
    }

    /// Empties a list, in O(its length).
    pub(super) fn clear(&mut self, list: usize) {
        while let Some(expert) = self.oldest(list) {
            self.remove(expert);
        }
    }

    /// The oldest member of a list.
    pub(super) fn oldest(&self, list: usize) -> Option<usize> {
        self.newer(self.sentinel(list))
    }

    /// The member after `expert`; none after the newest.
    pub(super) fn newer(&self, expert: usize) -> Option<usize> {
        let newer = self.nodes[expert].newer as usize;
        (newer < self.nodes.len() - self.lengths.len()).then_some(newer)
    }

    /// The members from oldest to newest.
    pub(super) fn iter(&self, list: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(self.oldest(list), |&expert| self.newer(expert))
    }

    /// The oldest member that is not pinned.
    pub(super) fn oldest_outside(&self, list: usize, pinned: &ExpertSet) -> Option<usize> {
        self.iter(list).find(|&expert| !pinned.contains(expert))
    }

    fn sentinel(&self, list: usize) -> usize {
        self.nodes.len() - self.lengths.len() + list
    }

    fn link_newest(&mut self, list: usize, expert: usize) {
        let sentinel = self.sentinel(list);
        let newest = self.nodes[sentinel].older;
        self.nodes[expert].older = newest;
        self.nodes[expert].newer = narrow(sentinel);
        self.nodes[newest as usize].newer = narrow(expert);
        self.nodes[sentinel].older = narrow(expert);
    }

    fn unlink(&mut self, expert: usize) {
        let Node { older, newer, .. } = self.nodes[expert];
        self.nodes[older as usize].newer = newer;
        self.nodes[newer as usize].older = older;
    }

    /// Asserts that links agree in both directions and with the lengths.
    #[cfg(test)]
    pub(super) fn validate(&self) {
        let mut listed = 0;
        for list in 0..self.lengths.len() {
            let members: Vec<usize> = self.iter(list).collect();
            assert_eq!(members.len(), self.len(list));
            let mut older = self.sentinel(list);
            for &member in members.iter().chain([&self.sentinel(list)]) {
                assert_eq!(self.nodes[member].older as usize, older);
                older = member;
            }
            assert!(members.iter().all(|&member| self.list_of(member) == Some(list)));
            listed += members.len();
        }
        let universe = self.universe();
        assert_eq!((0..universe).filter(|&expert| self.contains(expert)).count(), listed);
    }

    /// Asserts that exactly the experts of `resident` are in the given lists.
    #[cfg(test)]
    pub(super) fn validate_residents(&self, lists: std::ops::Range<usize>, resident: &ExpertSet) {
        self.validate();
        let mut members: Vec<usize> = lists.flat_map(|list| self.iter(list)).collect();
        members.sort_unstable();
        assert_eq!(members, resident.iter().collect::<Vec<_>>());
    }
}

fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("keys are u32")
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any sequence of operations leaves what it leaves in double-ended queues.
        #[test]
        fn behaves_like_queues(operations in proptest::collection::vec((0usize..4, 0usize..3, 0usize..7), 0..60)) {
            let mut lists = Lists::new(7, 3);
            let mut queues = vec![VecDeque::new(); 3];
            for (operation, list, expert) in operations {
                let at = queues.iter().position(|queue: &VecDeque<usize>| queue.contains(&expert));
                match operation {
                    0 => {
                        lists.put(list, expert);
                        queues.iter_mut().for_each(|queue| queue.retain(|&member| member != expert));
                        queues[list].push_back(expert);
                    }
                    1 => {
                        lists.touch(expert);
                        if let Some(at) = at {
                            queues[at].retain(|&member| member != expert);
                            queues[at].push_back(expert);
                        }
                    }
                    2 => {
                        prop_assert_eq!(lists.remove(expert), at);
                        queues.iter_mut().for_each(|queue| queue.retain(|&member| member != expert));
                    }
                    _ => {
                        lists.clear(list);
                        queues[list].clear();
                    }
                }
                lists.validate();
                for (list, queue) in queues.iter().enumerate() {
                    prop_assert_eq!(lists.iter(list).collect::<VecDeque<_>>(), queue.clone());
                    prop_assert_eq!(lists.oldest(list), queue.front().copied());
                    let pinned = ExpertSet::from_members(7, [0, 3]);
                    let outside = queue.iter().copied().find(|member| ![0, 3].contains(member));
                    prop_assert_eq!(lists.oldest_outside(list, &pinned), outside);
                }
            }
        }
    }
}
