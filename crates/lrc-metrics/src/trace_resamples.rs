//! The figures of a trace in all resamples.

use ndarray::Array2;

use crate::{Bootstrap, Intervals, MetricsReport, TraceMetrics, group_row::GroupRow};

/// Lower and upper bound.
pub(crate) type Bounds = (f64, f64);

/// Which of two bounds.
pub(crate) type Side = fn(&Bounds) -> f64;

/// The sums of groups, and how often each resample draws each group.
pub(crate) struct TraceResamples<'a> {
    pub(crate) bootstrap: &'a Bootstrap,
    pub(crate) metrics: &'a TraceMetrics,
    /// Window lengths.
    pub(crate) lengths: &'a [usize],
    /// The first of them, those that the report has.
    pub(crate) fitting: &'a [usize],
    pub(crate) rows: &'a [&'a GroupRow],
    /// `[groups x resamples]`.
    pub(crate) weights: Array2<f64>,
    /// Windows of an expert by window length, `[lengths x resamples]`.
    pub(crate) windows: Array2<f64>,
}

/// The reports of lower and of upper bounds.
pub(crate) struct BoundReports {
    low: MetricsReport,
    high: MetricsReport,
}

impl BoundReports {
    pub(crate) fn set(&mut self, set: impl Fn(&mut MetricsReport, Side)) {
        set(&mut self.low, |bounds| bounds.0);
        set(&mut self.high, |bounds| bounds.1);
    }
}

impl<'a> TraceResamples<'a> {
    pub(crate) fn new(
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
    pub(crate) fn intervals(&self, value: MetricsReport) -> Intervals<MetricsReport> {
        let mut bounds = BoundReports { low: value.clone(), high: value.clone() };
        self.bound_srp_of_experts(&value, &mut bounds);
        self.bound_srp_of_groups(&value, &mut bounds);
        self.bound_curves(&value, &mut bounds);
        self.bound_loads(&value, &mut bounds);
        Intervals { value, low: bounds.low, high: bounds.high }
    }
}
