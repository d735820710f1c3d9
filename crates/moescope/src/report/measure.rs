//! Everything that is measured, with intervals where there are at least two sequences.

use anyhow::{Result, ensure};
use lrc_metrics::{
    Accumulator, Bootstrap, ByDomain, DomainLoad, LoadBalance, MetricError, MetricsIntervals, MetricsOptions,
    TraceIntervals, accumulate,
};
use moe_trace::{Geometry, RoutingSource};
use moescope_cli::{LEFT_OUT, Provenance, progress_bar, shown};

use super::domain::DomainSequences;
use super::starts::{WindowStart, window_starts};
use crate::metrics::check_measurable;

/// What the figures show.
pub(crate) struct Measured {
    pub(crate) provenance: Provenance,
    pub(crate) model: String,
    pub(crate) geometry: Geometry,
    /// Names of all domains.
    pub(crate) names: Vec<String>,
    /// The window length of figures that show one.
    pub(crate) at: usize,
    pub(crate) all: MetricsIntervals,
    /// Domains that have a window of each length, by name.
    pub(crate) domains: Vec<(String, MetricsIntervals)>,
    pub(crate) starts: Vec<WindowStart>,
    pub(crate) load: DomainLoad,
}

/// Folds the trace.
pub(crate) fn measure(
    trace: &dyn RoutingSource,
    windows: &[usize],
    at: usize,
    bootstrap: &Bootstrap,
) -> Result<Measured> {
    let geometry = trace.geometry();
    let options = MetricsOptions { windows: windows.to_vec(), ..MetricsOptions::default() };
    // Value, lower and upper bound.
    check_measurable(geometry, &options, 3)?;
    let empty = TraceIntervals::new(geometry, &options)?;
    let all = estimate(&fold(trace, "sequences measured", &empty)?, bootstrap)?;
    ensure!(all.value.model.srp.contains_key(&at), "--at {at} fits into no sequence");
    let load = ByDomain::new(&LoadBalance::new(geometry), trace.domains().len());
    let load = fold(trace, "sequences counted by domain", &load)?.finish()?;
    let starts = window_starts(trace, at)?;
    let mut domains = Vec::new();
    for (name, sequences) in trace.domains().iter().zip(DomainSequences::all(trace)?) {
        let metrics = fold(&sequences, &format!("sequences of {name} measured"), &empty)?;
        match estimate(&metrics, bootstrap) {
            Ok(measured) if !measured.value.model.srp.contains_key(&at) => {
                moescope_cli::errln!(
                    "domain {} is left out: none of its sequences has a window of {at} tokens",
                    shown(name)
                );
            }
            Ok(measured) => domains.push((name.clone(), without_experts(measured))),
            Err(MetricError::WindowTooLong { window, longest, .. }) => {
                moescope_cli::errln!(
                    "domain {} is left out: its longest sequence has {longest} tokens, a window {window}",
                    shown(name)
                );
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Measured {
        provenance: Provenance::of(trace).with_unused_layers(all.value.unused_layers.clone(), LEFT_OUT),
        model: trace.model().unwrap_or("an unnamed model").to_owned(),
        geometry: geometry.clone(),
        names: trace.domains().to_vec(),
        at,
        all,
        domains,
        starts,
        load,
    })
}

/// Folds the trace into an accumulator, with a progress bar.
///
/// # Errors
/// A sequence that is broken.
pub(crate) fn fold<A: Accumulator>(trace: &dyn RoutingSource, what: &str, empty: &A) -> Result<A> {
    let progress = progress_bar(trace.len(), what);
    let folded = accumulate(trace, empty, &|done| progress.set_position(done as u64))?;
    progress.finish_and_clear();
    Ok(folded)
}

/// Keeps what is shown of a domain: SRP of the model and of its layers. The rest takes tens of megabytes per domain.
fn without_experts(mut figures: MetricsIntervals) -> MetricsIntervals {
    for report in [&mut figures.value, &mut figures.low, &mut figures.high] {
        report.model.curves.clear();
        for layer in &mut report.layers {
            layer.experts = Vec::new();
            layer.curves.clear();
            layer.load.activation_rates = Vec::new();
        }
    }
    figures
}

/// The figures with their intervals; of one sequence, with intervals of no width.
fn estimate(metrics: &TraceIntervals, bootstrap: &Bootstrap) -> lrc_metrics::Result<MetricsIntervals> {
    match metrics.finish(bootstrap) {
        Err(MetricError::TooFewSequences { .. }) => {
            let value = metrics.value()?;
            Ok(MetricsIntervals { low: value.clone(), high: value.clone(), value })
        }
        result => result,
    }
}
