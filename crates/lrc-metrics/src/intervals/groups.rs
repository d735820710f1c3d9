//! Sums over groups of sequences.

use serde::{Deserialize, Serialize};

use super::sequence_key::group_of;
use crate::{
    accumulate::{Merge, intact, within},
    error::{Result, same},
};

/// One sum for each sequence, or for each of a number of groups of sequences once there are more sequences than that.
///
/// A sequence belongs to the group that its key chooses. So what is kept is a function of the set of sequences alone,
/// whatever their order and however they were split, and it is bounded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Groups<T> {
    /// Number of groups.
    limit: usize,
    /// Whether the parts are groups: then part `g` is group `g`.
    grouped: bool,
    parts: Vec<Part<T>>,
    sequences: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Part<T> {
    /// Key of the sequence; 0 for a group.
    key: u64,
    sum: T,
}

impl<T: Merge> Groups<T> {
    pub(super) fn new(limit: usize) -> Groups<T> {
        Groups { limit, grouped: false, parts: Vec::new(), sequences: 0 }
    }

    /// The sum that the sequence of a key is to be added to.
    pub(super) fn of_next(&mut self, key: u64, empty: &T) -> Result<&mut T> {
        if !self.grouped && self.parts.len() == self.limit {
            self.group(empty)?;
        }
        self.sequences += 1;
        let at = if self.grouped { group_of(key, self.limit) } else { self.parts.len() };
        if !self.grouped {
            self.parts.push(Part { key, sum: empty.clone() });
        }
        Ok(&mut self.parts[at].sum)
    }

    pub(super) fn merge(&mut self, other: &Groups<T>, empty: &T) -> Result<()> {
        same("number of groups", &self.limit, &other.limit)?;
        if !self.grouped && (other.grouped || self.parts.len() + other.parts.len() > self.limit) {
            self.group(empty)?;
        }
        match (self.grouped, other.grouped) {
            (true, true) => {
                self.parts.iter_mut().zip(&other.parts).try_for_each(|(sum, more)| sum.sum.add(&more.sum))?;
            }
            (true, false) => {
                let limit = self.limit;
                let mut add = |part: &Part<T>| self.parts[group_of(part.key, limit)].sum.add(&part.sum);
                other.parts.iter().try_for_each(&mut add)?;
            }
            (false, _) => self.parts.extend_from_slice(&other.parts),
        }
        self.sequences += other.sequences;
        Ok(())
    }

    /// Number of sequences.
    pub(super) fn sequences(&self) -> u64 {
        self.sequences
    }

    /// The sums in an order of their own.
    pub(super) fn sums(&self) -> Vec<&T> {
        let mut parts: Vec<&Part<T>> = self.parts.iter().collect();
        // Stable, and equal keys are equal sequences.
        parts.sort_by_key(|part| part.key);
        parts.into_iter().map(|part| &part.sum).collect()
    }

    pub(super) fn sums_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.parts.iter_mut().map(|part| &mut part.sum)
    }

    /// Checks a state that was read.
    pub(super) fn check(&self, limit: usize, sequences: u64) -> Result<()> {
        intact("number of groups", &limit, &self.limit)?;
        intact("number of sequences", &sequences, &self.sequences)?;
        let expected = if self.grouped { limit as u128 } else { sequences.into() };
        within("number of rows", expected, expected.min(limit as u128), self.parts.len() as u128)
    }

    fn group(&mut self, empty: &T) -> Result<()> {
        self.grouped = true;
        // The first part of a group becomes the group, so that there are never more rows than groups.
        let mut groups: Vec<Option<T>> = (0..self.limit).map(|_| None).collect();
        for part in std::mem::take(&mut self.parts) {
            match &mut groups[group_of(part.key, self.limit)] {
                Some(sum) => sum.add(&part.sum)?,
                none => *none = Some(part.sum),
            }
        }
        let part = |sum: Option<T>| Part { key: 0, sum: sum.unwrap_or_else(|| empty.clone()) };
        self.parts = groups.into_iter().map(part).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Sum(u64);

    impl Merge for Sum {
        fn add(&mut self, other: &Sum) -> Result<()> {
            self.0 += other.0;
            Ok(())
        }
    }

    fn of(numbers: impl IntoIterator<Item = u64>) -> Groups<Sum> {
        let mut groups = Groups::new(128);
        for number in numbers {
            // Keys of sequences are hashes.
            groups.of_next(number.wrapping_mul(0x9e37_79b9_7f4a_7c15), &Sum(0)).unwrap().0 += number;
        }
        groups
    }

    #[test]
    fn few_sequences_stay_apart_and_many_are_grouped_whatever_the_split() {
        for count in [3, 127, 128, 129, 2000] {
            let whole = of(0..count);
            assert_eq!(whole.parts.len(), usize::try_from(count).unwrap().min(128));
            for cut in [0, 1, count / 2, count - 1] {
                let (mut left, mut right) = (of(cut..count), of((0..cut).rev()));
                right.merge(&left, &Sum(0)).unwrap();
                left.merge(&of(0..cut), &Sum(0)).unwrap();
                assert_eq!((left.sums(), left.sequences), (whole.sums(), count));
                assert_eq!((right.sums(), right.grouped), (whole.sums(), count > 128));
            }
            assert_eq!(whole.sums().iter().map(|sum| sum.0).sum::<u64>(), count * (count - 1) / 2);
        }
        assert!(of(0..2).merge(&Groups::new(64), &Sum(0)).is_err());
    }
}
