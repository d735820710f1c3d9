//! All metrics of a trace with confidence intervals.

use std::collections::BTreeMap;

use expert_cache::curve::CurveAccumulator;
use moe_trace::{Geometry, Sequence, Stack};
use serde::{Deserialize, Serialize};

use crate::{
    Accumulator, Bootstrap, Curves, MetricError, MetricsOptions, MetricsReport, ModelReport, Result, SrpValue,
    TraceMetrics,
    error::{LONGEST_WINDOW, same},
    load::layer_load,
    report::mean_curves,
    sequence_rows::SequenceRows,
    serialized::{Restore, checked_serde, within},
};

/// Hit rates of a sequence are kept in multiples of `2^-RATE_BITS`: sums over millions of sequences stay below `2^53`.
const RATE_BITS: u32 = 30;

/// [`TraceMetrics`] that can say how much of each figure is chance.
///
/// Beside the metrics it keeps what each sequence adds to them, as long as there are at most 512 sequences; with more,
/// what each of 512 groups of sequences adds, formed by a hash of the sequence. [`finish`](TraceIntervals::finish)
/// resamples sequences or groups.
///
/// # Formula
/// [`Bootstrap`].
///
/// # Complexity
/// A sequence costs a look at each histogram beside its metrics. Memory is at most `8 * 512` bytes a column; a layer has
/// `m + 1` columns for each window length, `experts` for the load and for each curve, and `experts * (m + 1)` for each
/// window length instead if intervals of expert SRP are asked for.
///
/// # References
/// arXiv 2505.16056, appendix C.
///
/// ```
/// use lrc_metrics::{Bootstrap, MetricsOptions, TraceIntervals, accumulate, oracle};
/// use moe_trace::{Geometry, MemoryTrace};
///
/// let geometry = Geometry::decoder(1, 8, 2)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// for sequence in oracle::synthetic(&geometry, 20, 64, 1) {
///     trace.push(sequence)?;
/// }
/// let options = MetricsOptions { windows: vec![4], ..MetricsOptions::default() };
/// let metrics = accumulate(&trace, &TraceIntervals::new(&geometry, &options, false)?, &|_done| {})?;
/// let report = metrics.finish(&Bootstrap::default())?;
/// let srp = |report: &lrc_metrics::MetricsReport| report.model.srp[&4].srp;
/// assert!(srp(&report.low) < srp(&report.value) && srp(&report.value) < srp(&report.high));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct TraceIntervals {
    metrics: TraceMetrics,
    #[serde(skip)]
    stacks: Vec<Stack>,
    /// Whether histograms are kept by expert.
    experts: bool,
    rows: SequenceRows,
    #[serde(skip)]
    before: Totals,
    #[serde(skip)]
    now: Totals,
}

/// The sums that all figures are made of.
#[derive(Clone, Debug, Default)]
struct Totals {
    /// Histograms and uses of each layer, then tokens.
    counts: Vec<u64>,
    /// Sequences and hit rates of each layer and of the pool, in multiples of `2^-64`.
    rates: Vec<u128>,
}

/// Figures of a trace with the bounds of their intervals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsIntervals {
    /// What was measured.
    pub value: MetricsReport,
    /// The lower bound of every real number of it. Experts of layers are left out where their intervals were not asked
    /// for; whole numbers are as measured.
    pub low: MetricsReport,
    /// The upper bound of every real number, likewise.
    pub high: MetricsReport,
}

impl Totals {
    /// Replaces the sums by those of all sequences so far.
    fn fill(&mut self, metrics: &TraceMetrics, by_expert: bool) {
        self.counts.clear();
        self.rates.clear();
        let experts = metrics.selection().experts();
        for position in 0..metrics.selection().layers().len() {
            for srp in metrics.srp() {
                let (start, len) = (self.counts.len(), srp.window() + 1);
                self.counts.resize(start + if by_expert { experts * len } else { len }, 0);
                for expert in 0..experts {
                    let at = start + if by_expert { expert * len } else { 0 };
                    srp.add_counts(position, expert, &mut self.counts[at..at + len]);
                }
            }
            self.counts.extend(metrics.load().uses(position));
        }
        self.counts.push(metrics.tokens());
        for curves in metrics.curves() {
            let sequences = curves.accumulators().first().map_or(0, CurveAccumulator::sequences);
            self.rates.push(u128::from(sequences) << 64);
            curves.accumulators().iter().for_each(|curve| self.rates.extend(curve.rate_sums()));
        }
    }

    /// What was added since, as a row of columns.
    fn since(&self, before: &Totals) -> Vec<u64> {
        let counts = self.counts.iter().zip(&before.counts).map(|(now, before)| now - before);
        let rate = |(now, before): (&u128, &u128)| {
            u64::try_from((now - before) >> (64 - RATE_BITS)).expect("a rate is at most 1")
        };
        counts.chain(self.rates.iter().zip(&before.rates).map(rate)).collect()
    }
}

impl TraceIntervals {
    /// Creates the metrics of no sequence; `experts` asks for intervals of the SRP of single experts, too.
    ///
    /// # Errors
    /// As [`TraceMetrics::new`]; [`MetricError::WindowLimit`] for a window above 4,096 tokens.
    pub fn new(geometry: &Geometry, options: &MetricsOptions, experts: bool) -> Result<TraceIntervals> {
        if let Some(&window) = options.windows.iter().find(|&&window| window > LONGEST_WINDOW) {
            return Err(MetricError::WindowLimit { window, limit: LONGEST_WINDOW });
        }
        let metrics = TraceMetrics::new(geometry, options)?;
        let stacks = metrics.selection().stacks().to_vec();
        let mut before = Totals::default();
        before.fill(&metrics, experts);
        let now = before.clone();
        Ok(TraceIntervals { metrics, stacks, experts, rows: SequenceRows::default(), before, now })
    }

    /// The metrics without intervals.
    pub fn metrics(&self) -> &TraceMetrics {
        &self.metrics
    }

    /// The measurements of the sequences so far with their intervals.
    ///
    /// # Errors
    /// [`MetricError::TooFewSequences`] for fewer than two; as [`TraceMetrics::finish`].
    pub fn finish(&self, bootstrap: &Bootstrap) -> Result<MetricsIntervals> {
        let value = self.metrics.finish()?;
        let mut low = value.clone();
        if !self.experts {
            low.layers.iter_mut().for_each(|layer| layer.experts.clear());
        }
        let figures = |sums: &[f64]| -> Vec<f64> {
            self.report(sums, &low).figures_mut().into_iter().map(|figure| *figure).collect()
        };
        let intervals = bootstrap.intervals(&self.rows, figures)?;
        let mut high = low.clone();
        let bounds = low.figures_mut().into_iter().zip(high.figures_mut());
        for ((low, high), interval) in bounds.zip(intervals) {
            (*low, *high) = interval;
        }
        Ok(MetricsIntervals { value, low, high })
    }

    /// The report of resampled sums; `like` has its shape.
    fn report(&self, sums: &[f64], like: &MetricsReport) -> MetricsReport {
        let mut sums = sums.iter().copied();
        let mut counts = |len: usize| -> Vec<u64> { sums.by_ref().take(len).map(whole).collect() };
        let mut report = like.clone();
        let windows: Vec<usize> = self.metrics.srp().iter().map(|srp| srp.window()).collect();
        let empty: Vec<Vec<u64>> = windows.iter().map(|window| vec![0; window + 1]).collect();
        let (mut encoder, mut decoder) = (empty.clone(), empty.clone());
        let mut uses = Vec::new();
        for (layer, stack) in report.layers.iter_mut().zip(&self.stacks) {
            let pooled_stack = if *stack == Stack::Encoder { &mut encoder } else { &mut decoder };
            for (&window, stack) in windows.iter().zip(pooled_stack) {
                let mut pooled = vec![0; window + 1];
                for row in 0..self.histograms() {
                    let histogram = counts(window + 1);
                    add(&mut pooled, &histogram);
                    if self.experts {
                        layer.experts[row].srp.insert(window, srp_value(&histogram));
                    }
                }
                layer.srp.insert(window, srp_value(&pooled));
                add(stack, &pooled);
            }
            uses.push(counts(self.metrics.selection().experts()));
        }
        let tokens = counts(1)[0];
        for (layer, uses) in report.layers.iter_mut().zip(&uses) {
            layer.load = layer_load(uses, tokens);
        }
        let pool = report.pool.iter_mut().map(|pool| &mut pool.curves);
        let reported = report.layers.iter_mut().map(|layer| &mut layer.curves).chain(pool);
        for (reported, curves) in reported.zip(self.metrics.curves()) {
            fill_curves(reported, curves, &mut sums);
        }
        let stacks = || report.layers.iter().zip(&self.stacks);
        let of_stack =
            |stack| mean_curves(stacks().filter(|(_, of_layer)| **of_layer == stack).map(|(layer, _)| layer));
        let group = |pooled: &[Vec<u64>], curves| {
            let values = windows.iter().zip(pooled).map(|(&window, counts)| (window, srp_value(counts)));
            ModelReport { srp: values.collect(), curves }
        };
        let of_encoder = like.encoder.as_ref().map(|_| group(&encoder, of_stack(Stack::Encoder)));
        let of_decoder = like.decoder.as_ref().map(|_| group(&decoder, of_stack(Stack::Decoder)));
        encoder.iter_mut().zip(&decoder).for_each(|(sum, more)| add(sum, more));
        report.model = group(&encoder, mean_curves(report.layers.iter()));
        (report.encoder, report.decoder) = (of_encoder, of_decoder);
        report
    }

    /// Histograms kept of each layer and window length.
    fn histograms(&self) -> usize {
        if self.experts { self.metrics.selection().experts() } else { 1 }
    }
}

/// Replaces hit rates by those of the next sums: the number of sequences, then each policy at each capacity, all in the
/// same unit; NaN without a sequence.
fn fill_curves(reported: &mut BTreeMap<String, Vec<f64>>, curves: &Curves, sums: &mut impl Iterator<Item = f64>) {
    // A pool that no sequence of the trace uses has hit rates of 0, not none.
    let sequences = sums.next().unwrap_or_default();
    let unused = curves.accumulators().iter().all(|curve| curve.sequences() == 0);
    let sequences = if unused { 1.0 } else { sequences };
    for curve in curves.accumulators() {
        let rates = sums.by_ref().take(curve.rate_sums().len());
        reported.insert(curve.policy().label(), rates.map(|sum| sum / sequences).collect());
    }
}

/// SRP of a histogram, NaN without a window.
fn srp_value(counts: &[u64]) -> SrpValue {
    if counts.iter().all(|&windows| windows == 0) {
        return SrpValue { srp: f64::NAN, rho: f64::NAN, threshold: 0, activation_rate: f64::NAN };
    }
    SrpValue::from_histogram(counts)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of whole numbers, exact in f64")]
fn whole(sum: f64) -> u64 {
    sum as u64
}

fn add(sum: &mut [u64], counts: &[u64]) {
    sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
}

impl Accumulator for TraceIntervals {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.metrics.update(sequence)?;
        self.now.fill(&self.metrics, self.experts);
        self.rows.push(self.now.since(&self.before));
        std::mem::swap(&mut self.before, &mut self.now);
        Ok(())
    }

    fn merge(&mut self, other: &TraceIntervals) -> Result<()> {
        same("choice of expert intervals", &self.experts, &other.experts)?;
        self.metrics.merge(&other.metrics)?;
        self.rows.merge(&other.rows);
        self.before.fill(&self.metrics, self.experts);
        Ok(())
    }
}

checked_serde!(TraceIntervals);

impl Restore for TraceIntervals {
    fn restore(&mut self) -> Result<()> {
        for srp in self.metrics.srp() {
            within("window length", 1, LONGEST_WINDOW as u128, srp.window() as u128)?;
        }
        self.stacks = self.metrics.selection().stacks().to_vec();
        self.before.fill(&self.metrics, self.experts);
        let columns = self.before.counts.len() + self.before.rates.len();
        self.rows.check(columns, self.metrics.sequences(), &self.before.counts)
    }
}
