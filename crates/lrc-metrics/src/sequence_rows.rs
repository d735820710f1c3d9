//! What each sequence adds to the sums that figures are made of.

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    random::SplitMix,
    serialized::{intact, total, within},
};

/// Rows that are kept apart; with more sequences, groups of sequences.
pub(crate) const MOST_ROWS: usize = 512;

/// One row for each sequence, its part of the sums; or for each of 512 groups of sequences once there are more.
///
/// A sequence belongs to the group that its row hashes to. So what is kept is a function of the set of sequences alone,
/// whatever their order and however they were split, and it is bounded: `8 * 512 * columns` bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SequenceRows {
    rows: Vec<Vec<u64>>,
    /// Whether the rows are groups.
    grouped: bool,
    sequences: u64,
}

impl SequenceRows {
    pub(crate) fn push(&mut self, row: Vec<u64>) {
        self.sequences += 1;
        if self.grouped {
            add(&mut self.rows[group(&row)], &row);
        } else {
            self.rows.push(row);
            if self.rows.len() > MOST_ROWS {
                self.group();
            }
        }
    }

    pub(crate) fn merge(&mut self, other: &SequenceRows) {
        if other.sequences == 0 {
            return;
        }
        if other.grouped {
            self.group_into(other.rows[0].len());
            self.rows.iter_mut().zip(&other.rows).for_each(|(sum, more)| add(sum, more));
            self.sequences += other.sequences;
        } else {
            other.rows.iter().for_each(|row| self.push(row.clone()));
        }
    }

    /// Number of sequences.
    pub(crate) fn sequences(&self) -> u64 {
        self.sequences
    }

    /// The rows in an order of their own.
    pub(crate) fn sorted(&self) -> Vec<&[u64]> {
        let mut rows: Vec<&[u64]> = self.rows.iter().map(Vec::as_slice).collect();
        rows.sort_unstable();
        rows
    }

    /// Checks a state that was read: rows of `sequences` sequences that add up to the totals of the first columns.
    pub(crate) fn check(&self, columns: usize, sequences: u64, totals: &[u64]) -> Result<()> {
        let rows = self.rows.len() as u128;
        let expected = if self.grouped { MOST_ROWS as u128 } else { u128::from(sequences) };
        within("number of rows", expected, expected.min(MOST_ROWS as u128), rows)?;
        intact("number of sequences", &sequences, &self.sequences)?;
        self.rows.iter().try_for_each(|row| intact("number of columns", &columns, &row.len()))?;
        for column in 0..columns {
            let sum = total("sum of a column", self.rows.iter().map(|row| &row[column]))?;
            totals.get(column).map_or(Ok(()), |total| intact("sum of a column", total, &sum))?;
        }
        Ok(())
    }

    fn group(&mut self) {
        let columns = self.rows.first().map_or(0, Vec::len);
        self.group_into(columns);
    }

    fn group_into(&mut self, columns: usize) {
        if !self.grouped {
            let rows = std::mem::replace(&mut self.rows, vec![vec![0; columns]; MOST_ROWS]);
            rows.iter().for_each(|row| add(&mut self.rows[group(row)], row));
            self.grouped = true;
        }
    }
}

fn group(row: &[u64]) -> usize {
    let mut state = 0;
    for &value in row {
        state = SplitMix::new(state ^ value).next();
    }
    SplitMix::new(state).below(MOST_ROWS)
}

fn add(sum: &mut [u64], row: &[u64]) {
    sum.iter_mut().zip(row).for_each(|(sum, more)| *sum += more);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(numbers: impl IntoIterator<Item = u64>) -> SequenceRows {
        let mut rows = SequenceRows::default();
        numbers.into_iter().for_each(|number| rows.push(vec![1, number]));
        rows
    }

    #[test]
    fn few_sequences_stay_apart_and_many_are_grouped_whatever_the_split() {
        assert_eq!(of([3, 1, 2]).sorted(), [[1, 1], [1, 2], [1, 3]]);
        for count in [511, 512, 513, 2000] {
            let whole = of(0..count);
            assert_eq!(whole.rows.len(), MOST_ROWS.min(usize::try_from(count).unwrap()));
            for cut in [0, 1, count / 2, count - 1] {
                let (mut left, mut right) = (of(cut..count), of((0..cut).rev()));
                right.merge(&left);
                left.merge(&of(0..cut));
                assert_eq!((left.sorted(), left.sequences), (whole.sorted(), count));
                assert_eq!((right.sorted(), right.grouped), (whole.sorted(), count > 512));
            }
            let sums = whole.sorted().into_iter().fold([0, 0], |[a, b], row| [a + row[0], b + row[1]]);
            assert_eq!(sums, [count, count * (count - 1) / 2]);
        }
    }
}
