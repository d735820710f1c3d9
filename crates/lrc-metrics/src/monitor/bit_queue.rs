//! A set of small numbers that knows its smallest.

/// A bitmap with a bitmap of its words that are not 0, and so on up to one word.
///
/// Adding, removing and finding the smallest each touch one word a level, of which `log64(universe)` there are: 2 up to
/// 4,096 numbers, 3 up to 262,144.
#[derive(Clone, Debug)]
pub(super) struct BitQueue {
    /// From the numbers up.
    levels: Vec<Vec<u64>>,
}

impl BitQueue {
    /// Creates the empty set of numbers below `universe`.
    pub(super) fn new(universe: usize) -> BitQueue {
        let mut levels = vec![vec![0; universe.div_ceil(64).max(1)]];
        while levels[levels.len() - 1].len() > 1 {
            levels.push(vec![0; levels[levels.len() - 1].len().div_ceil(64)]);
        }
        BitQueue { levels }
    }

    pub(super) fn insert(&mut self, number: usize) {
        let mut at = number;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            let known = *word != 0;
            *word |= 1 << (at % 64);
            if known {
                return;
            }
            at /= 64;
        }
    }

    pub(super) fn remove(&mut self, number: usize) {
        let mut at = number;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                return;
            }
            at /= 64;
        }
    }

    pub(super) fn first(&self) -> Option<usize> {
        let mut levels = self.levels.iter().rev();
        let top = levels.next()?[0];
        let bit = |word: u64| word.trailing_zeros() as usize;
        (top != 0).then(|| levels.fold(bit(top), |at, level| at * 64 + bit(level[at])))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_queue_is_an_ordered_set(
            (universe, numbers) in (1usize..9000).prop_flat_map(|universe| {
                (Just(universe), proptest::collection::vec((0..universe, any::<bool>()), 0..60))
            }),
        ) {
            let (mut queue, mut set) = (BitQueue::new(universe), BTreeSet::new());
            for (number, insert) in numbers {
                if insert {
                    queue.insert(number);
                    set.insert(number);
                } else {
                    // Half of the removals find something.
                    let number = set.range(number..).next().copied().unwrap_or(number);
                    queue.remove(number);
                    set.remove(&number);
                }
                prop_assert_eq!(queue.first(), set.first().copied());
            }
        }
    }
}
