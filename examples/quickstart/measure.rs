//! Metrics of the recorded trace, summed up over layers.

use std::collections::BTreeMap;

use anyhow::Result;
use lrc_metrics::{CurvePolicy, MetricsOptions, MetricsReport, TraceMetrics, accumulate, by_policy};
use moe_trace::{MemoryTrace, RoutingSource};
use moescope_cli::progress_bar;
use serde::Serialize;

/// Windows of SRP; 4, 16 and 64 are the source paper's.
const WINDOWS: [usize; 6] = [2, 4, 8, 16, 32, 64];
/// Policies to tabulate.
pub(crate) const POLICIES: [CurvePolicy; 4] =
    [CurvePolicy::Lru, CurvePolicy::Lfu, CurvePolicy::Belady, CurvePolicy::LookAhead { window: 16 }];
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
    #[serde(serialize_with = "by_policy::serialize")]
    pub(crate) hit_rate: BTreeMap<CurvePolicy, f64>,
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

/// Hit rates at the cache sizes of the table that the layers can have.
pub(crate) fn hit_rates(report: &MetricsReport, top_k: usize) -> Vec<HitRates> {
    let row = |rho: usize| {
        let capacity = rho * top_k;
        let rate = |policy| Some((policy, report.hit_rate(policy, capacity)?));
        let hit_rate: BTreeMap<_, _> = POLICIES.into_iter().filter_map(rate).collect();
        (!hit_rate.is_empty()).then_some(HitRates { rho, capacity, hit_rate })
    };
    RHOS.into_iter().filter_map(row).collect()
}

/// The smallest number of slots a layer whose mean hit rate reaches `target`, by policy; `None` if none does.
pub(crate) fn smallest_caches(report: &MetricsReport, target: f64) -> BTreeMap<CurvePolicy, Option<usize>> {
    let smallest = |policy| report.model.curves.get(policy)?.iter().position(|&rate| rate >= target).map(|at| at + 1);
    POLICIES.iter().map(|policy| (*policy, smallest(policy))).collect()
}
