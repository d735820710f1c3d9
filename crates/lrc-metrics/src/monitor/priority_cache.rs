//! A cache that evicts the expert of fewest uses ahead, and among equals the one used longest ago.

use super::bit_queue::BitQueue;

const ABSENT: usize = usize::MAX;

/// Experts in slots, ordered by uses ahead and then by the time of their last use.
///
/// Times are places in a list of twice as many places as there are experts. When the list is full, who is resident moves
/// to its front, in order; that is `O(experts)` after at least as many uses, so every operation is `O(1)` amortized.
#[derive(Clone, Debug)]
pub(super) struct PriorityCache {
    slots: usize,
    residents: usize,
    /// Uses ahead of every expert, counted whether it is resident or not.
    ahead: Vec<usize>,
    /// Place of every expert, [`ABSENT`] if it is not resident.
    place: Vec<usize>,
    /// The expert of a place, if it is still there.
    places: Vec<u16>,
    /// Places that are taken.
    taken: usize,
    /// `uses ahead * places + place` of every resident.
    order: BitQueue,
}

impl PriorityCache {
    /// Creates an empty cache of at most `most_ahead` uses ahead.
    pub(super) fn new(slots: usize, experts: usize, most_ahead: usize) -> PriorityCache {
        PriorityCache {
            slots,
            residents: 0,
            ahead: vec![0; experts],
            place: vec![ABSENT; experts],
            places: vec![0; 2 * experts],
            taken: 0,
            order: BitQueue::new((most_ahead + 1) * 2 * experts),
        }
    }

    pub(super) fn contains(&self, expert: u16) -> bool {
        self.place[usize::from(expert)] != ABSENT
    }

    /// Counts one more use ahead.
    pub(super) fn foresee(&mut self, expert: u16) {
        let index = usize::from(expert);
        if self.place[index] == ABSENT {
            self.ahead[index] += 1;
        } else {
            self.order.remove(self.rank(index));
            self.ahead[index] += 1;
            self.order.insert(self.rank(index));
        }
    }

    /// Counts one use ahead less: it happens now.
    pub(super) fn arrive(&mut self, expert: u16) {
        let index = usize::from(expert);
        if self.place[index] == ABSENT {
            self.ahead[index] -= 1;
        } else {
            self.order.remove(self.rank(index));
            self.ahead[index] -= 1;
            self.order.insert(self.rank(index));
        }
    }

    /// Uses an expert, loading it if it is absent, in place of the lowest if the cache is full.
    pub(super) fn serve(&mut self, expert: u16) {
        let index = usize::from(expert);
        if self.place[index] != ABSENT {
            self.order.remove(self.rank(index));
        } else if self.residents < self.slots {
            self.residents += 1;
        } else if let Some(lowest) = self.order.first() {
            self.order.remove(lowest);
            let evicted = self.places[lowest % self.places.len()];
            self.place[usize::from(evicted)] = ABSENT;
        }
        self.place[index] = ABSENT;
        if self.taken == self.places.len() {
            self.compact();
        }
        self.place[index] = self.taken;
        self.places[self.taken] = expert;
        self.taken += 1;
        self.order.insert(self.rank(index));
    }

    fn rank(&self, index: usize) -> usize {
        self.ahead[index] * self.places.len() + self.place[index]
    }

    /// Moves residents to the front of the list.
    fn compact(&mut self) {
        self.taken = 0;
        for place in 0..self.places.len() {
            let index = usize::from(self.places[place]);
            if self.place[index] == place {
                self.order.remove(self.rank(index));
                self.place[index] = self.taken;
                self.places[self.taken] = self.places[place];
                self.order.insert(self.rank(index));
                self.taken += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_expert_of_fewest_uses_ahead_leaves() {
        let mut cache = PriorityCache::new(2, 4, 3);
        let resident = |cache: &PriorityCache| [0, 1, 2, 3].map(|expert| cache.contains(expert));
        cache.foresee(1);
        cache.foresee(3);
        cache.serve(0);
        cache.serve(1);
        cache.serve(2);
        assert_eq!(resident(&cache), [false, true, true, false]);
        // The use of 1 has come: 2 is as little used ahead, but was used later.
        cache.arrive(1);
        cache.serve(3);
        assert_eq!(resident(&cache), [false, false, true, true]);
    }

    proptest! {
        /// Against a list that is searched.
        #[test]
        fn a_cache_is_a_searched_list(
            experts in 1usize..6, slots in 1usize..6, steps in proptest::collection::vec((0u16..6, any::<bool>()), 0..200),
        ) {
            let mut cache = PriorityCache::new(slots, experts, 4);
            let (mut ahead, mut residents): (Vec<usize>, Vec<u16>) = (vec![0; experts], Vec::new());
            for (expert, serve) in steps {
                let expert = expert % u16::try_from(experts).unwrap();
                let index = usize::from(expert);
                if serve {
                    // Oldest first, so the first of the least is the one used longest ago.
                    if let Some(at) = residents.iter().position(|&resident| resident == expert) {
                        residents.remove(at);
                    } else if residents.len() == slots {
                        let least = (0..slots).min_by_key(|&at| ahead[usize::from(residents[at])]).unwrap();
                        residents.remove(least);
                    }
                    residents.push(expert);
                    cache.serve(expert);
                } else if ahead[index] < 4 {
                    ahead[index] += 1;
                    cache.foresee(expert);
                } else {
                    ahead[index] -= 1;
                    cache.arrive(expert);
                }
                for expert in 0..experts {
                    let expert = u16::try_from(expert).unwrap();
                    prop_assert_eq!(cache.contains(expert), residents.contains(&expert));
                }
            }
        }
    }
}
