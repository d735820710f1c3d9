//! How many windows use an expert at least so often, for many experts of which most are used little.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    accumulate::{intact, within},
    error::Result,
    srp::check_at_least,
};

/// For each layer, window length and expert the windows with at least 1, 2, .. uses.
///
/// Only counts above 0 are held, which are the first ones of an expert: a window has seldom as many uses of an expert as it
/// has tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct UseCounts {
    /// Window lengths.
    lengths: Vec<usize>,
    experts: usize,
    /// `[layers x lengths x experts]`.
    cells: Vec<Vec<u32>>,
    /// What was read, until it is checked.
    packed: Vec<u32>,
}

impl UseCounts {
    /// Creates the counts of no window.
    pub(super) fn new(layers: usize, lengths: &[usize], experts: usize) -> UseCounts {
        let cells = vec![Vec::new(); layers * lengths.len() * experts];
        UseCounts { lengths: lengths.to_vec(), experts, cells, packed: Vec::new() }
    }

    /// The counts of an expert that are above 0, from that of one use on.
    pub(super) fn of(&self, position: usize, number: usize, expert: usize) -> &[u32] {
        &self.cells[self.cell(position, number, expert)]
    }

    /// Adds the windows of all experts of a layer, `[experts x length]`, and sets them to 0.
    pub(super) fn take(&mut self, position: usize, number: usize, more: &mut [u32]) {
        let length = self.lengths[number];
        for (expert, more) in more.chunks_exact_mut(length).enumerate() {
            let used = more.iter().position(|&windows| windows == 0).unwrap_or(length);
            if used > 0 {
                let cell = self.cell(position, number, expert);
                add(&mut self.cells[cell], &more[..used]);
                more[..used].fill(0);
            }
        }
    }

    /// Adds the counts of another group of the same shape.
    pub(super) fn merge(&mut self, other: &UseCounts) {
        self.cells.iter_mut().zip(&other.cells).for_each(|(sum, more)| add(sum, more));
    }

    fn cell(&self, position: usize, number: usize, expert: usize) -> usize {
        (position * self.lengths.len() + number) * self.experts + expert
    }

    /// Unpacks what was read, and checks it beside the number of windows of each length.
    pub(super) fn restore(&mut self, like: &UseCounts, windows: &[u64]) -> Result<()> {
        let layers = like.cells.len() / (like.lengths.len() * like.experts).max(1);
        let dense = unpacked(&self.packed, layers * like.experts * like.lengths.iter().sum::<usize>())?;
        let mut restored = UseCounts { cells: Vec::with_capacity(like.cells.len()), ..like.clone() };
        let mut rest = dense.as_slice();
        while !rest.is_empty() {
            for (&length, &windows) in like.lengths.iter().zip(windows) {
                within("number of windows", 0, u32::MAX.into(), windows.into())?;
                for _ in 0..like.experts {
                    let (row, others) = rest.split_at(length);
                    check_at_least(windows, row)?;
                    let used = row.iter().position(|&windows| windows == 0).unwrap_or(length);
                    restored.cells.push(row[..used].to_vec());
                    rest = others;
                }
            }
        }
        *self = restored;
        Ok(())
    }
}

fn add(sum: &mut Vec<u32>, more: &[u32]) {
    if sum.len() < more.len() {
        sum.reserve_exact(more.len() - sum.len());
        sum.resize(more.len(), 0);
    }
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// All counts of each expert, up to the window length, with runs of zeros as a zero and their length.
impl Serialize for UseCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let (mut packed, mut zeros) = (Vec::new(), 0usize);
        let lengths = self.lengths.iter().flat_map(|&length| std::iter::repeat_n(length, self.experts)).cycle();
        let end_run = |packed: &mut Vec<u32>, zeros: &mut usize| match u32::try_from(*zeros) {
            Ok(0) => {}
            Ok(run) => {
                packed.extend([0, run]);
                *zeros = 0;
            }
            Err(_) => packed.resize(packed.len() + std::mem::take(zeros), 0),
        };
        for (cell, length) in self.cells.iter().zip(lengths) {
            if !cell.is_empty() {
                end_run(&mut packed, &mut zeros);
                packed.extend(cell);
            }
            zeros += length - cell.len();
        }
        end_run(&mut packed, &mut zeros);
        serializer.collect_seq(packed)
    }
}

/// Reads what is unpacked when it is checked.
impl<'de> Deserialize<'de> for UseCounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<UseCounts, D::Error> {
        Ok(UseCounts { packed: Vec::deserialize(deserializer)?, ..UseCounts::default() })
    }
}

/// The counts with their zeros, which must be `len`.
fn unpacked(packed: &[u32], len: usize) -> Result<Vec<u32>> {
    let mut counts = Vec::with_capacity(len);
    let mut words = packed.iter();
    while let Some(&word) = words.next() {
        let zeros = if word == 0 { words.next().copied().unwrap_or(0) } else { 0 };
        let more = zeros.max(u32::from(word > 0));
        within("number of counts", 0, len as u128, counts.len() as u128 + u128::from(more))?;
        counts.resize(counts.len() + more as usize, word);
    }
    intact("number of counts", &len, &counts.len())?;
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LENGTHS: [usize; 2] = [2, 5];
    const EXPERTS: usize = 3;

    /// Counts of every layer and length as they are without this file: all of them, zeros too.
    fn dense() -> impl Strategy<Value = Vec<Vec<Vec<u32>>>> {
        let row = |length: usize| {
            proptest::collection::vec(0u32..4, length).prop_map(|mut row| {
                row.sort_unstable_by(|a, b| b.cmp(a));
                row
            })
        };
        let of_length = move |length| proptest::collection::vec(row(length), EXPERTS).prop_map(|rows| rows.concat());
        let of_layer = (of_length(2), of_length(5)).prop_map(|(two, five)| vec![two, five]);
        proptest::collection::vec(of_layer, 2)
    }

    proptest! {
        #[test]
        fn counts_are_those_of_dense_sums(parts in proptest::collection::vec(dense(), 1..4)) {
            let empty = UseCounts::new(2, &LENGTHS, EXPERTS);
            let (mut taken, mut merged) = (empty.clone(), empty.clone());
            let mut sums: Vec<Vec<Vec<u32>>> = vec![LENGTHS.iter().map(|length| vec![0; length * EXPERTS]).collect(); 2];
            for part in parts {
                let mut one = empty.clone();
                for (position, layer) in part.into_iter().enumerate() {
                    for (number, mut rows) in layer.into_iter().enumerate() {
                        sums[position][number].iter_mut().zip(&rows).for_each(|(sum, more)| *sum += more);
                        one.take(position, number, &mut rows.clone());
                        taken.take(position, number, &mut rows);
                        prop_assert!(rows.iter().all(|&windows| windows == 0));
                    }
                }
                merged.merge(&one);
            }
            prop_assert_eq!(&taken, &merged);
            for (position, layer) in sums.iter().enumerate() {
                for (number, (rows, length)) in layer.iter().zip(LENGTHS).enumerate() {
                    for (expert, row) in rows.chunks(length).enumerate() {
                        let mut found = taken.of(position, number, expert).to_vec();
                        prop_assert!(found.last() != Some(&0));
                        found.resize(length, 0);
                        prop_assert_eq!(&found, row);
                    }
                }
            }
            let text = serde_json::to_string(&taken).unwrap();
            // As runs of the dense sums.
            let dense = sums.concat().concat();
            let runs = dense.chunk_by(|a, b| (*a == 0) == (*b == 0));
            let packed: Vec<u32> = runs
                .flat_map(|run| if run[0] == 0 { vec![0, u32::try_from(run.len()).unwrap()] } else { run.to_vec() })
                .collect();
            prop_assert_eq!(&text, &serde_json::to_string(&packed).unwrap());
            let mut read: UseCounts = serde_json::from_str(&text).unwrap();
            read.restore(&empty, &[100, 100]).unwrap();
            prop_assert_eq!(read, taken);
        }
    }
}
