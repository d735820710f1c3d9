//! What the routing of models says about the cost of offloading them, measured.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, ensure};
use candle_core::Device;
use lrc_metrics::{CurvePolicy, MetricsOptions, MetricsReport, TraceMetrics, accumulate};
use moe_offload::{
    ExpertBank, ExpertShape, ExpertStore, OffloadOptions, OffloadedExperts, RandomExperts, Replay, ResidentExperts,
    WeightType,
};
use moe_trace::{MemoryTrace, RoutingSource};
use moescope_cli::{Files, Foreign, cache_sizes, host_experts, number, progress_bar, whole, write_json, write_text};

use super::excerpt::{Excerpt, Excerpted};
use super::relation::{Figures, OfTrace, Relation, Row};
use super::relation_page;
use super::steps::Steps;

/// Correlate SRP, SCH and LRU hits of several traces with the measured overhead of offloading.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope correlate one.safetensors another.safetensors")]
pub(crate) struct Arguments {
    /// Traces or files of other recorders, each of a model
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,

    /// Cache sizes: slots a layer over the experts of a token [default: those of 1,2,3,4 that a layer has experts for]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = number(1.0..))]
    rho: Option<Vec<f64>>,

    /// Window of SRP and SCH, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = whole::<usize>(1..))]
    window: usize,

    /// Layers of each model, evenly chosen
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole::<usize>(1..))]
    layers: usize,

    /// Sequences of each trace, evenly chosen
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole::<usize>(1..))]
    sequences: usize,

    /// Tokens of each sequence, from the first on
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = whole::<usize>(1..))]
    tokens: usize,

    /// Tokens of each sequence that are prefilled, whatever the trace says; the others are decoded
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole::<usize>(0..))]
    prefill: usize,

    /// Width of the tokens: experts are random, and of one size for all models. Slots that fit in the processor's caches
    /// would make loads look free
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = whole::<usize>(1..=1 << 20))]
    hidden: usize,

    /// Width inside an expert
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = whole::<usize>(1..=1 << 20))]
    intermediate: usize,

    /// Type of the weights
    #[arg(long = "type", value_name = "TYPE", default_value = "f32")]
    weight_type: WeightType,

    /// Times that every run is repeated; of every step the best counts
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole::<usize>(1..))]
    rounds: usize,

    /// Write all figures to this file as JSON
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    json: Option<PathBuf>,

    /// Write plots to this file as a self-contained page
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    html: Option<PathBuf>,

    #[command(flatten)]
    foreign: Foreign,
}

/// Cache sizes unless others are given.
const RHO: [f64; 4] = [1.0, 2.0, 3.0, 4.0];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let files = arguments.traces.iter().fold(Files::new(), Files::reads_trace);
    let files = files.reads_all("the file of --config", &arguments.foreign.config);
    files.writes("--json", &arguments.json).writes("--html", &arguments.html).check()?;
    let Arguments { rounds, window, prefill, tokens, .. } = *arguments;
    ensure!(prefill < tokens, "--prefill is {prefill}, of --tokens {tokens} some must be decoded");
    // All are opened first, so that a bad file is told before work starts.
    let excerpt = Excerpt { layers: arguments.layers, sequences: arguments.sequences, tokens, prefill: Some(prefill) };
    let traces = arguments.traces.iter().map(|path| {
        let Excerpted { trace, provenance, .. } = excerpt.of(path, &arguments.foreign)?;
        Ok((trace, OfTrace { model: name(path), provenance }))
    });
    let (traces, about): (Vec<MemoryTrace>, Vec<OfTrace>) = traces.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    let sizes = traces.iter().map(|trace| cache_sizes(arguments.rho.as_deref(), &RHO, trace.geometry()));
    let sizes: Vec<Vec<(f64, usize)>> = sizes.collect::<Result<_>>()?;
    let bar = progress_bar(sizes.iter().map(|sizes| rounds * (sizes.len() + 1)).sum(), "runs");
    let mut rows = Vec::new();
    for ((about, trace), sizes) in about.iter().zip(&traces).zip(&sizes) {
        rows.extend(measured(&about.model, trace, sizes, arguments, || bar.inc(1))?);
    }
    bar.finish_and_clear();
    let relation = Relation::new(window, rows, about);
    moescope_cli::outln!("{relation}");
    if let Some(path) = &arguments.json {
        write_json(path, &relation)?;
    }
    if let Some(path) = &arguments.html {
        write_text(path, &relation_page::render(&relation))?;
    }
    Ok(())
}

/// The last two parts of a path, which tell the runs of an experiment apart.
fn name(path: &Path) -> String {
    let stem = path.with_extension("");
    // A run's trace is named by its folder.
    let named = stem.parent().filter(|_| stem.ends_with("trace")).unwrap_or(&stem);
    let parts: Vec<_> = named.iter().rev().take(2).map(|part| part.to_string_lossy()).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

/// Measures one model at all cache sizes, which are pairs of rho and slots per layer.
fn measured(
    name: &str,
    trace: &MemoryTrace,
    sizes: &[(f64, usize)],
    arguments: &Arguments,
    done: impl Fn(),
) -> Result<Vec<Row>> {
    let geometry = trace.geometry();
    let options = MetricsOptions { windows: vec![arguments.window], ..MetricsOptions::default() };
    let metrics = accumulate(trace, &TraceMetrics::new(geometry, &options)?, &|_| {})?.finish()?;
    let shape = ExpertShape {
        layers: geometry.layers(),
        experts: geometry.experts(),
        hidden: arguments.hidden,
        intermediate: arguments.intermediate,
    };
    let random = RandomExperts::new(shape, arguments.weight_type, 0)?;
    let store: Arc<dyn ExpertStore> = Arc::new(host_experts(&random)?);
    let resident = ResidentExperts::from_store(&*store)?;
    let replay = Replay::new(trace, shape.hidden, store.activations(), &Device::Cpu)?;
    let run = |bank: &dyn ExpertBank| -> Result<(Steps, u32)> {
        let mut steps = Steps::default();
        let report = replay.run(bank, |pass| steps.add(pass))?;
        done();
        Ok((steps, report.checksum))
    };
    let (mut all, mut cases) = (Steps::default(), vec![(Steps::default(), 0.0); sizes.len()]);
    for _ in 0..arguments.rounds {
        // In turn, so that a machine that slows down does so for all.
        let (steps, expected) = run(&resident)?;
        all.merge(steps);
        for (&(rho, slots), (best, hit_rate)) in sizes.iter().zip(&mut cases) {
            let bank = OffloadedExperts::new(Arc::clone(&store), &Device::Cpu, OffloadOptions::slots(slots))?;
            let (steps, found) = run(&bank)?;
            ensure!(found == expected, "{name}, rho {rho}: the offloaded run computed otherwise than the resident one");
            best.merge(steps);
            *hit_rate = bank.report()?.total.decode.hit_rate;
        }
    }
    let overhead = |steps: &Steps, of: fn(&Steps) -> f64| Some(of(steps) / of(&all) - 1.0).filter(|o| o.is_finite());
    let rows = sizes.iter().zip(&cases).map(|(&(rho, slots), (steps, hit_rate))| Row {
        model: name.to_owned(),
        rho,
        slots,
        figures: figures(&metrics, arguments.window, slots),
        hit_rate: *hit_rate,
        decode_overhead: overhead(steps, Steps::decode_seconds),
        prefill_overhead: overhead(steps, Steps::prefill_seconds),
    });
    Ok(rows.collect())
}

fn figures(metrics: &MetricsReport, window: usize, slots: usize) -> Figures {
    Figures {
        srp: metrics.model.srp.get(&window).map(|value| value.srp),
        sch: metrics.hit_rate(CurvePolicy::LookAhead { window }, slots),
        lru: metrics.hit_rate(CurvePolicy::Lru, slots),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_named_by_their_folder() {
        assert_eq!(name(Path::new("study/half-dense/seed-1/trace.safetensors")), "half-dense/seed-1");
        assert_eq!(name(Path::new("granite.safetensors")), "granite");
    }
}
