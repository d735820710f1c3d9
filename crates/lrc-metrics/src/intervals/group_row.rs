//! What a sequence or a group of sequences adds to the sums that the figures of a trace are made of.

use expert_cache::curve::CurveAccumulator;
use serde::{Deserialize, Serialize};

use super::use_counts::UseCounts;
use crate::{
    accumulate::{MOST, Merge, intact, within},
    error::{MetricError, Result},
    trace::TraceMetrics,
};

/// The sums of one group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct GroupRow {
    /// Windows of each length in which an expert has at least 1 to `m` uses.
    pub(super) at_least: UseCounts,
    /// Windows of each length.
    pub(super) windows: Vec<u64>,
    pub(super) totals: Totals,
}

/// The sums of what is no histogram.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Totals {
    pub(super) tokens: u64,
    /// `[layers x experts]`.
    pub(super) uses: Vec<u64>,
    /// For each layer and then for the pool: sequences, and the sum of hit rates of each policy at each capacity, all in
    /// multiples of `2^-64`.
    pub(super) rates: Vec<u128>,
}

impl Totals {
    /// Replaces the sums by those of all sequences so far.
    pub(super) fn fill(&mut self, metrics: &TraceMetrics) {
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
    pub(super) fn add_since(&mut self, before: &Totals, now: &Totals) {
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
        self.at_least.merge(&other.at_least);
        self.totals.tokens += other.totals.tokens;
        self.totals.uses.iter_mut().zip(&other.totals.uses).for_each(|(sum, more)| *sum += more);
        self.totals.rates.iter_mut().zip(&other.totals.rates).for_each(|(sum, more)| *sum += more);
        Ok(())
    }
}

impl GroupRow {
    /// Adds windows of each length, so that no number of them can be too large for 32 bits.
    pub(super) fn add_windows(&mut self, more: impl Iterator<Item = u64>) -> Result<()> {
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
    pub(super) fn restore(&mut self, like: &GroupRow) -> Result<()> {
        intact("number of window lengths", &like.windows.len(), &self.windows.len())?;
        intact("number of uses", &like.totals.uses.len(), &self.totals.uses.len())?;
        intact("number of hit rates", &like.totals.rates.len(), &self.totals.rates.len())?;
        within("number of tokens", 0, MOST.into(), self.totals.tokens.into())?;
        self.at_least.restore(&like.at_least, &self.windows)
    }
}
