//! Sets of experts as bits.

use bitvec::{order::Lsb0, vec::BitVec};

/// A set over the experts of one pool, one bit an expert.
///
/// The members are indices `0..universe`: the experts of a layer, or the dense keys of a pool of several layers.
///
/// ```
/// use moe_trace::ExpertSet;
/// let mut wanted = ExpertSet::new(64);
/// wanted.insert(3);
/// wanted.insert(60);
/// assert_eq!(wanted.iter().collect::<Vec<_>>(), [3, 60]);
/// assert_eq!(wanted.len(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExpertSet {
    bits: BitVec<u64, Lsb0>,
}

impl ExpertSet {
    /// Creates the empty set over `0..universe`.
    pub fn new(universe: usize) -> ExpertSet {
        ExpertSet { bits: BitVec::repeat(false, universe) }
    }

    /// Creates the set of the given members.
    ///
    /// # Panics
    /// If a member is not in `0..universe`.
    pub fn from_members(universe: usize, members: impl IntoIterator<Item = usize>) -> ExpertSet {
        let mut set = ExpertSet::new(universe);
        for member in members {
            set.insert(member);
        }
        set
    }

    /// Number of possible members.
    #[inline]
    pub fn universe(&self) -> usize {
        self.bits.len()
    }

    /// Number of members.
    #[inline]
    pub fn len(&self) -> usize {
        self.words().iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is no member.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.words().iter().all(|&word| word == 0)
    }

    /// Whether `member` is in the set.
    #[inline]
    pub fn contains(&self, member: usize) -> bool {
        member < self.universe() && self.words()[member / 64] >> (member % 64) & 1 == 1
    }

    /// Adds a member; tells whether it was absent.
    ///
    /// # Panics
    /// If `member` is not in `0..universe`.
    #[inline]
    pub fn insert(&mut self, member: usize) -> bool {
        assert!(member < self.universe(), "member {member} of {}", self.universe());
        let (word, bit) = (&mut self.bits.as_raw_mut_slice()[member / 64], 1 << (member % 64));
        let absent = *word & bit == 0;
        *word |= bit;
        absent
    }

    /// Removes a member; tells whether it was present.
    ///
    /// # Panics
    /// If `member` is not in `0..universe`.
    #[inline]
    pub fn remove(&mut self, member: usize) -> bool {
        assert!(member < self.universe(), "member {member} of {}", self.universe());
        let (word, bit) = (&mut self.bits.as_raw_mut_slice()[member / 64], 1 << (member % 64));
        let present = *word & bit != 0;
        *word &= !bit;
        present
    }

    /// Removes all members.
    #[inline]
    pub fn clear(&mut self) {
        self.bits.as_raw_mut_slice().fill(0);
    }

    /// Becomes a copy of `other`, without allocating.
    ///
    /// # Panics
    /// If the universes differ.
    #[inline]
    pub fn copy_from(&mut self, other: &ExpertSet) {
        assert_eq!(self.universe(), other.universe(), "sets over different universes");
        self.bits.as_raw_mut_slice().copy_from_slice(other.words());
    }

    /// Adds the members of `other`.
    ///
    /// # Panics
    /// If the universes differ.
    #[inline]
    pub fn union_with(&mut self, other: &ExpertSet) {
        assert_eq!(self.universe(), other.universe(), "sets over different universes");
        for (word, &more) in self.bits.as_raw_mut_slice().iter_mut().zip(other.words()) {
            *word |= more;
        }
    }

    /// Number of members that both sets have.
    #[inline]
    pub fn intersection_len(&self, other: &ExpertSet) -> usize {
        self.words().iter().zip(other.words()).map(|(&a, &b)| (a & b).count_ones() as usize).sum()
    }

    /// Whether every member is also in `other`.
    pub fn is_subset(&self, other: &ExpertSet) -> bool {
        self.intersection_len(other) == self.len()
    }

    /// The members in ascending order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let (&word, later) = self.words().split_first().unwrap_or((&0, &[]));
        Members { word, at: 0, later }
    }

    /// The bits as words: member `i` is bit `i % 64` of word `i / 64`; bits at and above `universe` are 0.
    #[inline]
    pub fn words(&self) -> &[u64] {
        self.bits.as_raw_slice()
    }
}

/// Members of a set, ascending, word by word: a few instructions a member, where a general bit iterator takes tens.
struct Members<'a> {
    /// Members of the current word that are still to come.
    word: u64,
    /// First possible member of the current word.
    at: usize,
    later: &'a [u64],
}

impl Iterator for Members<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.word == 0 {
            (self.word, self.later) = self.later.split_first().map(|(&word, later)| (word, later))?;
            self.at += 64;
        }
        let member = self.at + self.word.trailing_zeros() as usize;
        self.word &= self.word - 1;
        Some(member)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every operation agrees with a `BTreeSet`.
        #[test]
        fn behaves_like_a_tree_set(
            universe in 1usize..200,
            left in proptest::collection::vec(any::<u16>(), 0..60),
            right in proptest::collection::vec(any::<u16>(), 0..60),
        ) {
            let members = |raw: &[u16]| raw.iter().map(|&x| usize::from(x) % universe).collect::<BTreeSet<_>>();
            let (tree_a, tree_b) = (members(&left), members(&right));
            let mut a = ExpertSet::from_members(universe, tree_a.iter().copied());
            let b = ExpertSet::from_members(universe, tree_b.iter().copied());
            prop_assert_eq!(a.len(), tree_a.len());
            prop_assert_eq!(a.is_empty(), tree_a.is_empty());
            prop_assert_eq!(a.iter().collect::<Vec<_>>(), tree_a.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(a.intersection_len(&b), tree_a.intersection(&tree_b).count());
            prop_assert_eq!(a.is_subset(&b), tree_a.is_subset(&tree_b));
            a.union_with(&b);
            prop_assert_eq!(a.iter().collect::<Vec<_>>(), tree_a.union(&tree_b).copied().collect::<Vec<_>>());
            for member in tree_a {
                prop_assert!(a.remove(member));
                prop_assert!(!a.contains(member));
                prop_assert!(a.insert(member));
            }
            a.clear();
            prop_assert!(a.is_empty());
            a.copy_from(&b);
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn members_outside_the_universe_are_absent() {
        assert!(!ExpertSet::from_members(4, [0, 1, 2, 3]).contains(4));
    }
}
