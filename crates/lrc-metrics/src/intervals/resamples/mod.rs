//! The figures of a trace in all resamples.

mod curves;
mod load;
mod srp;
mod threshold;

use ndarray::Array2;

use crate::intervals::{bootstrap::Bootstrap, group_row::GroupRow, resampled::Intervals};
use crate::trace::{MetricsReport, TraceMetrics};

/// Lower and upper bound.
type Bounds = (f64, f64);

/// Which of two bounds.
type Side = fn(&Bounds) -> f64;

/// The sums of groups, and how often each resample draws each group.
pub(super) struct TraceResamples<'a> {
    bootstrap: &'a Bootstrap,
    metrics: &'a TraceMetrics,
    /// Window lengths.
    lengths: &'a [usize],
    /// The first of them, those that the report has.
    fitting: &'a [usize],
    rows: &'a [&'a GroupRow],
    /// `[groups x resamples]`.
    weights: Array2<f64>,
    /// Windows of an expert by window length, `[lengths x resamples]`.
    windows: Array2<f64>,
}

/// The reports of lower and of upper bounds.
struct BoundReports {
    low: MetricsReport,
    high: MetricsReport,
}

impl BoundReports {
    fn set(&mut self, set: impl Fn(&mut MetricsReport, Side)) {
        set(&mut self.low, |bounds| bounds.0);
        set(&mut self.high, |bounds| bounds.1);
    }
}

impl<'a> TraceResamples<'a> {
    pub(super) fn new(
        bootstrap: &'a Bootstrap,
        metrics: &'a TraceMetrics,
        lengths: &'a [usize],
        fitting: &'a [usize],
        rows: &'a [&'a GroupRow],
    ) -> TraceResamples<'a> {
        let weights = bootstrap.weights(rows.len());
        let windows =
            Array2::from_shape_fn((lengths.len(), rows.len()), |(number, row)| rows[row].windows[number] as f64);
        let windows = windows.dot(&weights);
        TraceResamples { bootstrap, metrics, lengths, fitting, rows, weights, windows }
    }

    /// The interval of every figure of a report of the whole.
    pub(super) fn intervals(&self, value: MetricsReport) -> Intervals<MetricsReport> {
        let mut bounds = BoundReports { low: value.clone(), high: value.clone() };
        self.bound_srp_of_experts(&value, &mut bounds);
        self.bound_srp_of_groups(&value, &mut bounds);
        self.bound_curves(&value, &mut bounds);
        self.bound_loads(&value, &mut bounds);
        Intervals { value, low: bounds.low, high: bounds.high }
    }
}
