//! What a sequence or a group of sequences adds to the sums that the figures of a trace are made of.

use expert_cache::curve::CurveAccumulator;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    MetricError, Result, TraceMetrics,
    groups::Merge,
    histogram::check_at_least,
    serialized::{MOST, intact, within},
};

/// The sums of one group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct GroupRow {
    /// Windows of each length in which an expert has at least 1 to `m` uses, `[layers x lengths x experts x m]`.
    ///
    /// Written with runs of zeros as a zero and their length, and so until it is checked after reading.
    #[serde(serialize_with = "write_runs", deserialize_with = "read_runs")]
    pub(crate) at_least: Vec<u32>,
    /// Windows of each length.
    pub(crate) windows: Vec<u64>,
    pub(crate) totals: Totals,
}

/// Place of the first number of windows of a layer and a window length.
pub(crate) fn first_sum(lengths: &[usize], experts: usize, position: usize, number: usize) -> usize {
    let all: usize = lengths.iter().sum();
    let before: usize = lengths[..number].iter().sum();
    experts * (position * all + before)
}

/// The sums of what is no histogram.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Totals {
    pub(crate) tokens: u64,
    /// `[layers x experts]`.
    pub(crate) uses: Vec<u64>,
    /// For each layer and then for the pool: sequences, and the sum of hit rates of each policy at each capacity, all in
    /// multiples of `2^-64`.
    pub(crate) rates: Vec<u128>,
}

impl Totals {
    /// Replaces the sums by those of all sequences so far.
    pub(crate) fn fill(&mut self, metrics: &TraceMetrics) {
        self.tokens = metrics.tokens();
        self.uses.clear();
        let layers = 0..metrics.selection().layers().len();
        layers.for_each(|position| self.uses.extend(metrics.load().uses(position)));
        self.rates.clear();
        for curves in metrics.curves() {
            let sequences = curves.accumulators().first().map_or(0, CurveAccumulator::sequences);
            self.rates.push(u128::from(sequences) << 64);
            curves.accumulators().iter().for_each(|curve| self.rates.extend(curve.rate_sums()));
        }
    }

    /// Adds what was added to `before` to become `now`.
    pub(crate) fn add_since(&mut self, before: &Totals, now: &Totals) {
        self.tokens += now.tokens - before.tokens;
        for (sum, (now, before)) in self.uses.iter_mut().zip(now.uses.iter().zip(&before.uses)) {
            *sum += now - before;
        }
        for (sum, (now, before)) in self.rates.iter_mut().zip(now.rates.iter().zip(&before.rates)) {
            *sum += now - before;
        }
    }
}

impl Merge for GroupRow {
    fn add(&mut self, other: &GroupRow) -> Result<()> {
        // Rows of the same arguments, checked to be so by whoever merges.
        self.add_windows(other.windows.iter().copied())?;
        self.at_least.iter_mut().zip(&other.at_least).for_each(|(sum, more)| *sum += more);
        self.totals.tokens += other.totals.tokens;
        self.totals.uses.iter_mut().zip(&other.totals.uses).for_each(|(sum, more)| *sum += more);
        self.totals.rates.iter_mut().zip(&other.totals.rates).for_each(|(sum, more)| *sum += more);
        Ok(())
    }
}

impl GroupRow {
    /// Adds windows of each length, so that no number of them can be too large for 32 bits.
    pub(crate) fn add_windows(&mut self, more: impl Iterator<Item = u64>) -> Result<()> {
        let limit = u32::MAX.into();
        for (sum, more) in self.windows.iter_mut().zip(more) {
            *sum += more;
            if *sum > limit {
                return Err(MetricError::GroupWindows { windows: *sum, limit });
            }
        }
        Ok(())
    }

    /// Unpacks a row that was read, and checks that it has the shape of `like`.
    pub(crate) fn restore(&mut self, like: &GroupRow, lengths: &[usize], experts: usize) -> Result<()> {
        self.at_least = unpacked(&self.at_least, like.at_least.len())?;
        intact("number of window lengths", &like.windows.len(), &self.windows.len())?;
        intact("number of uses", &like.totals.uses.len(), &self.totals.uses.len())?;
        intact("number of hit rates", &like.totals.rates.len(), &self.totals.rates.len())?;
        within("number of tokens", 0, MOST.into(), self.totals.tokens.into())?;
        let mut at_least = self.at_least.as_slice();
        while !at_least.is_empty() {
            for (&length, &windows) in lengths.iter().zip(&self.windows) {
                within("number of windows", 0, u32::MAX.into(), windows.into())?;
                for _ in 0..experts {
                    let (row, rest) = at_least.split_at(length);
                    check_at_least(windows, row)?;
                    at_least = rest;
                }
            }
        }
        Ok(())
    }
}

/// Runs of zeros as a zero and their length.
fn write_runs<S: Serializer>(counts: &[u32], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    let runs = counts.chunk_by(|a, b| (*a == 0) == (*b == 0));
    let packed = runs.flat_map(|run| match (run[0], u32::try_from(run.len())) {
        (0, Ok(zeros)) => vec![0, zeros],
        _ => run.to_vec(),
    });
    serializer.collect_seq(packed)
}

fn read_runs<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u32>, D::Error> {
    Vec::deserialize(deserializer)
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
