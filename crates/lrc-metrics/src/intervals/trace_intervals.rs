//! All metrics of a trace with confidence intervals.

use std::collections::BTreeMap;

use moe_trace::{Geometry, Sequence};
use serde::{Deserialize, Serialize};

use super::{
    bootstrap::Bootstrap,
    group_row::{GroupRow, Totals},
    groups::Groups,
    resampled::Intervals,
    sequence_key::sequence_key,
    use_counts::UseCounts,
};
use crate::{
    accumulate::{Accumulator, MOST, Restore, checked_serde, intact, within},
    error::{LONGEST_WINDOW, MetricError, Result, same},
    intervals::resamples::TraceResamples,
    srp::{SlidingWindow, SrpReport, add_counts, fitting},
    trace::{MetricsOptions, MetricsReport, TraceMetrics},
};

/// The metrics of a trace with intervals.
pub type MetricsIntervals = Intervals<MetricsReport>;

/// [`TraceMetrics`] that can say how much of each figure is chance, at every level down to single experts.
///
/// Instead of one sum over the trace it keeps the sums of each sequence, as long as there are at most 96 of them; with
/// more, the sums of 96 groups of sequences, formed by a hash of the sequence (64 or 32 groups where one group would
/// have more than 2^20 or 2^21 numbers). [`finish`](TraceIntervals::finish) resamples sequences or groups.
///
/// # Formula
/// [`Bootstrap`]. Hit rates of groups are rounded to `2^-30`. It is what
/// [`Resampled<TraceMetrics>`](crate::Resampled) gives, up to that rounding.
///
/// # Complexity
/// A sequence costs what [`TraceMetrics`] costs and a few per cent, the intervals one product of a matrix of draws with
/// one of sums. Memory is at most `4 * layers * experts * m` bytes a group for each window length, and 24 bytes for each
/// layer, expert and window length. It is so much only where every expert fills whole windows: of an expert as many counts
/// are held as a window has uses of it. Each thread of [`accumulate`](crate::accumulate) has groups of its own.
///
/// # References
/// arXiv 2505.16056, appendix C.
///
/// ```
/// use lrc_metrics::{Bootstrap, MetricsOptions, TraceIntervals, accumulate};
/// use moe_trace::{Geometry, SequenceStream, Synthetic, SyntheticOptions};
///
/// let geometry = Geometry::decoder(1, 8, 2)?;
/// let dials = SyntheticOptions { sequences: 20, tokens: 64, ..SyntheticOptions::default() };
/// let trace = Synthetic::new(geometry.clone(), dials).collect()?;
/// let options = MetricsOptions { windows: vec![4], ..MetricsOptions::default() };
/// let metrics = accumulate(&trace, &TraceIntervals::new(&geometry, &options)?, &|_done| {})?;
/// let report = metrics.finish(&Bootstrap::default())?;
/// let srp = |report: &lrc_metrics::MetricsReport| report.model.srp[&4].srp;
/// assert!(srp(&report.low) < srp(&report.value) && srp(&report.value) < srp(&report.high));
/// let srp = |report: &lrc_metrics::MetricsReport| report.layers[0].experts[3].srp[&4].srp;
/// assert!(srp(&report.low) < srp(&report.value) && srp(&report.value) < srp(&report.high));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct TraceIntervals {
    /// Without SRP, which is summed over groups.
    metrics: TraceMetrics,
    /// Window lengths in ascending order.
    lengths: Vec<usize>,
    longest: usize,
    groups: Groups<GroupRow>,
    #[serde(skip)]
    empty: GroupRow,
    /// One for each window length.
    #[serde(skip)]
    sliding: Vec<SlidingWindow>,
    /// Windows of a layer of one sequence by their uses at least, `[experts x longest length]`; 0 between layers.
    #[serde(skip)]
    windows: Vec<u32>,
    #[serde(skip)]
    before: Totals,
    #[serde(skip)]
    now: Totals,
}

impl TraceIntervals {
    /// Creates the metrics of no sequence.
    ///
    /// # Errors
    /// As [`TraceMetrics::new`]; [`MetricError::WindowLimit`] for a window above 4,096 tokens.
    pub fn new(geometry: &Geometry, options: &MetricsOptions) -> Result<TraceIntervals> {
        if let Some(&window) = options.windows.iter().find(|&&window| window > LONGEST_WINDOW) {
            return Err(MetricError::WindowLimit { window, limit: LONGEST_WINDOW });
        }
        let (metrics, lengths) = TraceMetrics::new(geometry, options)?.without_srp();
        let groups = Groups::new(groups_of(sums_of(&metrics, &lengths)));
        let mut intervals = TraceIntervals {
            metrics,
            lengths,
            longest: 0,
            groups,
            empty: GroupRow::default(),
            sliding: Vec::new(),
            windows: Vec::new(),
            before: Totals::default(),
            now: Totals::default(),
        };
        intervals.shape();
        Ok(intervals)
    }

    /// The measurements without intervals, and without SRP at window lengths that fit into no sequence.
    ///
    /// # Errors
    /// As [`TraceMetrics::finish`].
    pub fn value(&self) -> Result<MetricsReport> {
        let (selection, rows) = (self.metrics.selection(), self.groups.sums());
        let mut reports = BTreeMap::new();
        for (number, &window) in self.fitting()?.iter().enumerate() {
            let windows: u64 = rows.iter().map(|row| row.windows[number]).sum();
            let report = SrpReport::pool(window, windows, selection, |position, expert, counts| {
                let mut at_least = vec![0; window];
                for row in &rows {
                    let more = row.at_least.of(position, number, expert);
                    at_least.iter_mut().zip(more).for_each(|(sum, &more)| *sum += u64::from(more));
                }
                add_counts(windows, &at_least, counts);
            });
            reports.insert(window, report);
        }
        Ok(self.metrics.report(&reports))
    }

    /// The measurements of the sequences so far with their intervals.
    ///
    /// # Errors
    /// [`MetricError::TooFewSequences`] for fewer than two; as [`TraceMetrics::finish`].
    pub fn finish(&self, bootstrap: &Bootstrap) -> Result<MetricsIntervals> {
        let value = self.value()?;
        let sequences = self.metrics.sequences();
        if sequences < 2 {
            return Err(MetricError::TooFewSequences { sequences });
        }
        let rows = self.groups.sums();
        let resamples = TraceResamples::new(bootstrap, &self.metrics, &self.lengths, self.fitting()?, &rows);
        Ok(resamples.intervals(value))
    }

    /// The window lengths that fit into a sequence.
    fn fitting(&self) -> Result<&[usize]> {
        fitting(&self.lengths, self.longest, self.metrics.sequences())
    }

    /// Makes what follows from the metrics.
    fn shape(&mut self) {
        let experts = self.metrics.selection().experts();
        self.before.fill(&self.metrics);
        let totals = &self.before;
        let totals = Totals { tokens: 0, uses: vec![0; totals.uses.len()], rates: vec![0; totals.rates.len()] };
        let at_least = UseCounts::new(self.metrics.selection().layers().len(), &self.lengths, experts);
        self.empty = GroupRow { at_least, windows: vec![0; self.lengths.len()], totals };
        self.sliding = self.lengths.iter().map(|&window| SlidingWindow::new(window, experts)).collect();
    }
}

/// Numbers of windows in a row.
fn sums_of(metrics: &TraceMetrics, lengths: &[usize]) -> usize {
    metrics.selection().layers().len() * metrics.selection().experts() * lengths.iter().sum::<usize>()
}

/// Groups for rows of so many numbers: fewer for the largest models, whose rows are some 10 MB each.
fn groups_of(sums: usize) -> usize {
    match sums {
        0..=0x10_0000 => 96,
        0x10_0001..=0x20_0000 => 64,
        _ => 32,
    }
}

impl Accumulator for TraceIntervals {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.metrics.selection().check(sequence)?;
        let row = self.groups.of_next(sequence_key(sequence), &self.empty)?;
        let windows = |&window: &usize| (sequence.len() + 1).saturating_sub(window) as u64;
        row.add_windows(self.lengths.iter().map(windows))?;
        let (sliding, at_least, windows) = (&mut self.sliding, &mut row.at_least, &mut self.windows);
        let experts = self.metrics.selection().experts();
        windows.resize(experts * self.lengths.last().copied().unwrap_or_default(), 0);
        self.metrics.update_and(sequence, |position, accesses| {
            for (number, (window, length)) in sliding.iter_mut().zip(&self.lengths).enumerate() {
                let of_length = &mut windows[..experts * length];
                // Exact modulo 2^32, and a group has fewer windows.
                window.add(accesses, of_length);
                at_least.take(position, number, of_length);
            }
        })?;
        self.longest = self.longest.max(sequence.len());
        self.now.fill(&self.metrics);
        row.totals.add_since(&self.before, &self.now);
        std::mem::swap(&mut self.before, &mut self.now);
        Ok(())
    }

    fn merge(&mut self, other: &TraceIntervals) -> Result<()> {
        same("list of window lengths", &self.lengths, &other.lengths)?;
        self.metrics.merge(&other.metrics)?;
        self.groups.merge(&other.groups, &self.empty)?;
        self.longest = self.longest.max(other.longest);
        self.before.fill(&self.metrics);
        Ok(())
    }
}

checked_serde!(TraceIntervals);

impl Restore for TraceIntervals {
    fn restore(&mut self) -> Result<()> {
        let mut shortest = 1;
        for &window in &self.lengths {
            within("window length", shortest, LONGEST_WINDOW as u128, window as u128)?;
            shortest = window as u128 + 1;
        }
        for curves in self.metrics.curves() {
            let ahead: Vec<usize> = curves.policies().iter().filter_map(|policy| policy.window()).collect();
            same("list of look-ahead windows", &self.lengths, &ahead)?;
        }
        self.shape();
        let limit = groups_of(sums_of(&self.metrics, &self.lengths));
        self.groups.check(limit, self.metrics.sequences())?;
        for row in self.groups.sums_mut() {
            row.restore(&self.empty)?;
        }
        // Checked sums: what is read may claim anything.
        let rows = self.groups.sums();
        for (at, &uses) in self.before.uses.iter().enumerate() {
            let sum = rows.iter().map(|row| u128::from(row.totals.uses[at])).sum();
            within("sum of the uses of groups", uses.into(), uses.into(), sum)?;
        }
        for (at, &rate) in self.before.rates.iter().enumerate() {
            let sum = rows.iter().try_fold(0u128, |sum, row| sum.checked_add(row.totals.rates[at]));
            intact("sum of the hit rates of groups", &rate, &sum.unwrap_or(u128::MAX))?;
        }
        let tokens = rows.iter().map(|row| u128::from(row.totals.tokens)).sum();
        within("sum of the tokens of groups", self.before.tokens.into(), self.before.tokens.into(), tokens)?;
        within("length of the longest sequence", 0, MOST.into(), self.longest as u128)
    }
}
