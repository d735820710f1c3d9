//! Measures the local routing consistency of a trace: SRP, hit-rate curves and load balance.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail};
use candle_core::Device;
use lrc_metrics::{HitRates, MetricsOptions, MetricsReport, TraceMetrics, accumulate};
use moe_trace::{Geometry, LayerId, RoutingSource};
use moescope_cli::{
    Files, Foreign, LEFT_OUT, Numbers, Provenance, Reported, Table, check_memory, distinct_numbers, each_once,
    fitting_windows, per_cent, processors, progress_bar, shown, table, unused_layers, whole, write_json,
};

/// Measure the local routing consistency of a trace.
///
/// SRP tells how well one set of experts serves a window of m tokens; the hit-rate curves tell what a cache of c expert
/// slots would do under LRU, LFU, Belady and the look-ahead policy of each m (SCH), in the convention of arXiv
/// 2505.16056.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope metrics trace.safetensors --m 4,16,64 --pool --json metrics.json")]
pub(crate) struct Arguments {
    /// A trace file, a directory of trace shards, or a file of another recorder.
    trace: PathBuf,

    /// Window lengths in tokens [default: those of 4,16,64,256 that fit into a sequence].
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = whole::<usize>(1..))]
    m: Option<Vec<usize>>,

    /// MoE layers to look at, counted from 0: numbers and ranges like 0,3..5 (3 and 4) or 3..=5; all by default.
    #[arg(long, value_name = "LIST", value_parser = distinct_numbers)]
    layers: Option<Numbers>,

    /// Also treat all selected layers as one cache.
    #[arg(long)]
    pool: bool,

    /// Write everything to this file as JSON.
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    json: Option<PathBuf>,

    #[command(flatten)]
    foreign: Foreign,
}

/// The layers of `--layers` in ascending order, not yet checked against a trace.
fn layers(numbers: &Numbers) -> Result<Vec<LayerId>> {
    let mut numbers = numbers.0.clone();
    numbers.sort_unstable();
    let layer = |&number: &usize| {
        let id = u16::try_from(number).with_context(|| format!("--layers has {number}, the largest is {}", u16::MAX));
        id.map(LayerId)
    };
    numbers.iter().map(layer).collect()
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    each_once("--m", arguments.m.as_deref().unwrap_or_default())?;
    Files::new()
        .reads_trace(&arguments.trace)
        .reads_all("the file of --config", &arguments.foreign.config)
        .writes("--json", &arguments.json)
        .check()?;
    let trace = open(arguments)?;
    let geometry = trace.geometry();
    let options = MetricsOptions {
        windows: match &arguments.m {
            Some(windows) => windows.clone(),
            None => fitting_windows(trace.as_ref(), &MetricsOptions::default().windows)?,
        },
        layers: arguments.layers.as_ref().map(layers).transpose()?,
        pool: arguments.pool,
        ..MetricsOptions::default()
    };
    check_measurable(geometry, &options, 1)?;
    let empty = TraceMetrics::new(geometry, &options).context("cannot measure this; see --m and --layers in --help")?;

    let bar = progress_bar(trace.len(), "sequences");
    let start = Instant::now();
    let metrics = accumulate(trace.as_ref(), &empty, &|_done| bar.inc(1))
        .with_context(|| format!("cannot measure {}", arguments.trace.display()))?;
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let report = metrics.finish().context("give --m only window lengths that fit into a sequence")?;

    moescope_cli::outln!(
        "{}: {} sequences, {} tokens, {} MoE layers x {} experts, top-{}; {seconds:.2} s",
        shown(trace.model().unwrap_or("unnamed model")),
        report.sequences,
        report.tokens,
        geometry.layers(),
        geometry.experts(),
        geometry.top_k()
    );
    moescope_cli::outln!("\n{}\n", srp_table(&report));
    let (convention, table) = (report.convention.description(), curve_table(&report, geometry.top_k()));
    moescope_cli::outln!("Hit rates; {convention}; first touches hit while slots are free\n{table}");
    if let Some(note) = unused_layers(&report.unused_layers, LEFT_OUT) {
        moescope_cli::outln!("{note}");
    }
    if let Some(path) = &arguments.json {
        write_json(path, &Reported { report: &report, provenance: &Provenance::of(trace.as_ref()) })?;
    }
    Ok(())
}

/// Refuses a trace whose metrics, with so many reports, do not fit into the free memory.
pub(crate) fn check_measurable(geometry: &Geometry, options: &MetricsOptions, reports: usize) -> Result<()> {
    let layers = options.layers.as_ref().map_or(geometry.layers(), Vec::len);
    let work = format!("measuring {layers} layers of {} experts", geometry.experts());
    let needed = options.memory_bytes(geometry, processors(), reports);
    let advice =
        "give fewer or shorter windows with --m, slice layers out of the trace, or give --experts if an id is wrong";
    check_memory(&Device::Cpu, needed, &work, advice)
}

fn open(arguments: &Arguments) -> Result<Box<dyn RoutingSource>> {
    let trace = arguments.foreign.open(&arguments.trace)?;
    if trace.is_empty() {
        bail!("{} has no sequence; was its recording finished?", arguments.trace.display());
    }
    Ok(trace)
}

/// SRP of the model and the best and worst layer, by window length.
fn srp_table(report: &MetricsReport) -> Table {
    let mut table = table(["m", "SRP %", "rho", "threshold", "worst layer", "best layer"]);
    for (window, value) in &report.model.srp {
        let mut layers: Vec<(f64, usize)> = report
            .layers
            .iter()
            .filter(|layer| layer.is_used())
            .map(|layer| (layer.srp[window].srp, layer.layer))
            .collect();
        layers.sort_by(|a, b| a.0.total_cmp(&b.0));
        let name = |layer: Option<&(f64, usize)>| {
            layer.map_or(String::new(), |(srp, layer)| format!("{} (layer {layer})", per_cent(*srp)))
        };
        table.add_row([
            window.to_string(),
            per_cent(value.srp),
            format!("{:.2}", value.rho),
            value.threshold.to_string(),
            name(layers.first()),
            name(layers.last()),
        ]);
    }
    table
}

/// Hit rates at capacities relative to the experts that a token uses, mean over layers, and of the pool. A layer without an
/// access takes no slots of the pool.
fn curve_table(report: &MetricsReport, top_k: usize) -> Table {
    let factors = [1, 2, 3, 4]; // the columns below
    let mut table = table(["cache", "policy", "hit % at rho = 1", "rho = 2", "rho = 3", "rho = 4"]);
    let mut add = |cache: &str, curves: &HitRates, slots: usize| {
        for (policy, rates) in curves {
            let cells = factors.map(|factor| rate_at(rates, factor * slots).map_or("-".to_owned(), per_cent));
            table.add_row([cache.to_owned(), policy.to_string()].into_iter().chain(cells));
        }
    };
    add("per layer", &report.model.curves, top_k);
    if let Some(pool) = &report.pool {
        add("pool", &pool.curves, (report.layers.len() - report.unused_layers.len()) * top_k);
    }
    table
}

/// Hit rate of a number of slots, if there can be so many.
fn rate_at(rates: &[f64], slots: usize) -> Option<f64> {
    rates.get(slots.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_whose_metrics_do_not_fit_into_memory_is_refused_before_any_work() {
        let options = MetricsOptions { windows: vec![4096], ..MetricsOptions::default() };
        let check = |layers, experts, reports| {
            check_measurable(&Geometry::decoder(layers, experts, 1).unwrap(), &options, reports)
        };
        check(2, 8, 3).unwrap();
        let error = check(256, 65_535, 3).unwrap_err().to_string();
        assert!(error.starts_with("measuring 256 layers of 65535 experts takes about "), "{error}");
        assert!(error.contains("GiB are free: give fewer or shorter windows with --m"), "{error}");
    }
}
