//! Metrics of the recorded trace, summed up over layers.

use std::collections::BTreeMap;

use anyhow::Result;
use lrc_metrics::{MetricsOptions, MetricsReport, TraceMetrics, accumulate};
use moe_examples::progress_bar;
use moe_trace::{MemoryTrace, RoutingSource};
use serde::Serialize;

/// Windows of SRP; 4, 16 and 64 are the source paper's.
const WINDOWS: [usize; 6] = [2, 4, 8, 16, 32, 64];
/// Policies to tabulate, by the labels of the metrics.
pub(crate) const POLICIES: [&str; 4] = ["lru", "lfu", "belady", "sch_16"];
/// Cache sizes to tabulate.
const RHOS: [usize; 3] = [1, 2, 3];

/// Mean hit rates over layers at one cache size.
#[derive(Serialize)]
pub(crate) struct HitRates {
    /// Slots relative to the experts of a token.
    pub(crate) rho: usize,
    /// Slots a layer.
    pub(crate) capacity: usize,
    /// Mean hit rate by policy.
    pub(crate) hit_rate: BTreeMap<&'static str, f64>,
}

/// Measures SRP and the hit-rate curves of a trace. Windows longer than every sequence are left out.
pub(crate) fn metrics(trace: &MemoryTrace) -> Result<MetricsReport> {
    let longest = trace.sequences().iter().map(|sequence| sequence.phases.len()).max().unwrap_or(0);
    let windows = WINDOWS.into_iter().filter(|&window| window <= longest).collect();
    let options = MetricsOptions { windows, ..MetricsOptions::default() };
    let bar = progress_bar(trace.len(), "sequences");
    let metrics = accumulate(trace, &TraceMetrics::new(trace.geometry(), &options)?, &|_done| bar.inc(1))?;
    bar.finish_and_clear();
    Ok(metrics.finish()?)
}

/// Mean over layers of the hit rates of a policy, entry `i` for `i + 1` slots a layer.
pub(crate) fn mean_curve(report: &MetricsReport, label: &str) -> Vec<f64> {
    let mean = report.curves(label).and_then(|curves| curves.mean_axis(ndarray::Axis(0)));
    mean.map_or(Vec::new(), |mean| mean.to_vec())
}

/// Hit rates at the cache sizes of the table that the layers can have.
pub(crate) fn hit_rates(report: &MetricsReport, top_k: usize) -> Vec<HitRates> {
    let row = |rho: usize| {
        let capacity = rho * top_k;
        let rate = |label| Some((label, *mean_curve(report, label).get(capacity - 1)?));
        let hit_rate: BTreeMap<_, _> = POLICIES.into_iter().filter_map(rate).collect();
        (!hit_rate.is_empty()).then_some(HitRates { rho, capacity, hit_rate })
    };
    RHOS.into_iter().filter_map(row).collect()
}

/// The smallest number of slots a layer whose mean hit rate reaches `target`, by policy; `None` if none does.
pub(crate) fn smallest_caches(report: &MetricsReport, target: f64) -> BTreeMap<&'static str, Option<usize>> {
    let smallest = |label| mean_curve(report, label).iter().position(|&rate| rate >= target).map(|at| at + 1);
    POLICIES.into_iter().map(|label| (label, smallest(label))).collect()
}
