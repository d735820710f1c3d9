//! Predicted and measured speed of the runtime, side by side.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use expert_cache::{HardwareProfile, PolicyKind, PrefetcherKind, Transfer};
use moe_examples::write_json;
use moe_offload::{
    ExpertStore, HostStore, LayerReport, MappedStore, OffloadOptions, OffloadedExperts, QuantizedExperts,
    ResidentExperts, Transfers, WeightType, measure, measure_disk,
};
use moe_trace::{LayerId, MemoryTrace, RoutingSource, Selection, TraceView};

use crate::calibrate::{calibrate, disk_seconds, median, prices};
use crate::case::{Case, Misses, Served, cases};
use crate::live::{live_bar, watched};
use crate::page;
use crate::report::{Report, Row};
use crate::steps::Steps;
use crate::stores::{HostTier, Place, StoreArguments};
use crate::workload::Workload;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of an OLMoE checkpoint in the Hugging Face layout, which continues prompts [default: the model of this
    /// repository].
    #[arg(long, value_name = "DIR", conflicts_with = "weights")]
    model: Option<PathBuf>,

    /// Replay a trace on the experts of this GGUF file; `offload generate` makes one.
    #[arg(long, value_name = "FILE", requires = "trace")]
    weights: Option<PathBuf>,

    /// The trace to replay.
    #[arg(long, value_name = "FILE", requires = "weights")]
    trace: Option<PathBuf>,

    /// Sequences of the trace to replay, from the first on.
    #[arg(long, value_name = "N", default_value_t = 2)]
    sequences: usize,

    /// Tokens of each sequence to replay, from the first on.
    #[arg(long, value_name = "N", default_value_t = 128)]
    tokens: usize,

    /// Quantize the model's experts first, to `q8_0` for example.
    #[arg(long = "type", conflicts_with = "weights")]
    weight_type: Option<WeightType>,

    #[command(flatten)]
    store: StoreArguments,

    /// Cache sizes: slots a layer over the experts of a token.
    #[arg(long, value_delimiter = ',', default_value = "1,1.5,2,3,4")]
    rho: Vec<f64>,

    /// Policies to try, any of docs/policies.md; those that look ahead know the trace.
    #[arg(long, value_delimiter = ',', default_value = "lru,lfu,belady")]
    policies: Vec<PolicyKind>,

    /// Prefetchers to try: none, previous-token, next-layer, markov, history-PASSES, oracle-ACCURACY.
    #[arg(long, value_delimiter = ',', default_value = "none")]
    prefetchers: Vec<PrefetcherKind>,

    /// What misses do.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "load")]
    misses: Vec<Misses>,

    /// Predictions that are considered after every layer.
    #[arg(long, value_name = "N", default_value_t = 2)]
    per_request: usize,

    /// Threads that copy experts beside the compute; 0 copies on the computing thread.
    #[arg(long, value_name = "N", default_value_t = 0)]
    transfers: usize,

    /// Tokens to generate for each prompt.
    #[arg(long, value_name = "N", default_value_t = 64)]
    new_tokens: usize,

    /// Times that every run is repeated; of every step the best counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Run the first case once more, and write what its threads did to this file as a Chrome trace, for Perfetto or
    /// `chrome://tracing`.
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,

    /// Write all figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write plots to this file as a self-contained page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Activities that a timeline holds, at most.
const TIMELINE_EVENTS: usize = 1 << 20;

/// What rounds of runs gave.
#[derive(Default)]
struct Measured {
    resident: Steps,
    /// Computing straight from the mapped files, where not all experts fit in memory.
    mapped: Steps,
    cases: Vec<OfCase>,
    /// One a round.
    profiles: Vec<HardwareProfile>,
}

/// What rounds of a case gave.
#[derive(Default)]
struct OfCase {
    steps: Steps,
    /// What the bank counted in the last round.
    bank: LayerReport,
    /// Seconds of an expert from disk just before each round, where no page cache is in between.
    disk_seconds: Vec<f64>,
}

/// The experts, and how their loads are measured.
struct Source {
    transfers: Transfers,
    tier: Option<HostTier>,
    store: Arc<dyn ExpertStore>,
    too_large: bool,
    /// The speed of the disk before anything was read.
    cold: Option<Transfer>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "--rounds is 0, give at least 1");
    let transfers = Transfers::threads(arguments.transfers);
    let tier = arguments.store.host_tier()?;
    let Arguments { rho, policies, prefetchers, misses, per_request, .. } = arguments;
    let cases = cases(rho, policies, prefetchers, misses, *per_request, transfers)?;
    // Before anything maps the files: what is mapped and touched stays in memory.
    let cold = arguments.disk_speed()?;
    let mut workload = open(arguments)?;
    workload.too_large &= arguments.store.store == Place::Disk;
    let store: Arc<dyn ExpertStore> = match arguments.store.store {
        Place::Host => Arc::new(HostStore::from_store(&*workload.store)?),
        Place::Disk => Arc::clone(&workload.store),
    };
    let source = Source { transfers, tier, store, too_large: workload.too_large, cold };

    // So that the first run that counts does not also pay for cold memory; it tells what all the others must give.
    let (mapped, outcome) = workload.run(Arc::new(ResidentExperts::from_store(&*source.store)?))?;
    let mut measured = Measured { mapped, profiles: vec![source.profile()?], ..Measured::default() };
    measured.cases.resize_with(cases.len(), Default::default);
    let size = workload.size();
    let prices = |profiles: &[HardwareProfile]| {
        prices(profiles, &size, arguments.store.store == Place::Disk, transfers.overlap())
    };
    let decided_by = prices(&measured.profiles)?;
    let served = Served::new(workload.routing(&outcome), size.expert_bytes.clone(), tier, decided_by)?;

    let bar = live_bar(arguments.rounds * (cases.len() + 1));
    let run = |case: &Case, options: OffloadOptions<'_>| -> Result<(Arc<OffloadedExperts>, Steps)> {
        let bank = Arc::new(OffloadedExperts::new(source.before_the_slots()?, &Device::Cpu, options)?);
        let (steps, found) = watched(&bar, &case.to_string(), &bank, || workload.run(bank.clone()))?;
        ensure!(found == outcome, "{case}: the offloaded run computed otherwise than the resident one");
        Ok((bank, steps))
    };
    for round in 0..arguments.rounds {
        // In turn, so that a machine that slows down does so for all.
        if round > 0 {
            measured.profiles.push(source.profile()?);
        }
        measured.resident.merge(workload.run(Arc::new(workload.all_resident(&source.store)?))?.0);
        // The first was as cold as the caches of the cases are.
        if source.too_large && round > 0 {
            measured.mapped.merge(workload.run(Arc::new(ResidentExperts::from_store(&*source.store)?))?.0);
        }
        bar.inc(1);
        for (case, of_case) in cases.iter().zip(&mut measured.cases) {
            if source.too_large
                && let Some(disk) = arguments.disk_speed()?
            {
                of_case.disk_seconds.push(disk_seconds(&disk, &size));
            }
            let (bank, steps) = run(case, served.options(case)?)?;
            of_case.bank = bank.report()?.total;
            of_case.steps.merge(steps);
            bar.inc(1);
        }
    }
    if let (Some(path), Some(case)) = (&arguments.timeline, cases.first()) {
        let (bank, _) = run(case, served.options(case)?.record_timeline(TIMELINE_EVENTS))?;
        write_timeline(path, &bank)?;
    }
    bar.finish_and_clear();

    let mut prices = prices(&measured.profiles)?;
    calibrate(&served, &mut prices, &measured.resident)?;
    let row = |(case, of_case): (&Case, &OfCase)| -> Result<Row> {
        let mut prices = prices.clone();
        if !of_case.disk_seconds.is_empty() {
            prices.disk_seconds = median(of_case.disk_seconds.iter().copied());
        }
        let predicted = served.predict(case, &prices)?;
        Ok(Row::new(
            case,
            case.slots(served.geometry()),
            &predicted,
            &of_case.steps,
            &of_case.bank,
            prices.disk_seconds,
        ))
    };
    let rows = cases.iter().zip(&measured.cases).map(row).collect::<Result<_>>()?;
    let report = Report::new(&prices, &measured.resident, source.too_large.then_some(&measured.mapped), rows);
    println!("{report}");
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    if let Some(path) = &arguments.html {
        std::fs::write(path, page::render(&report)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

impl Arguments {
    /// How fast experts are read from disk, if they come from there.
    fn disk_speed(&self) -> Result<Option<Transfer>> {
        let Some(weights) = self.weights.as_ref().filter(|_| self.store.store == Place::Disk) else { return Ok(None) };
        let weights = std::slice::from_ref(weights);
        let open = || MappedStore::open_gguf(weights)?.with_reads(self.store.reads());
        Ok(Some(measure_disk(weights, open).context("cannot measure the disk")?))
    }
}

impl Source {
    /// What the machine takes now.
    fn profile(&self) -> Result<HardwareProfile> {
        let profile = measure("here", &self.store, &Device::Cpu, self.transfers)?;
        Ok(HardwareProfile { disk: self.cold.unwrap_or(profile.disk), ..profile })
    }

    /// Where the banks load from.
    fn before_the_slots(&self) -> Result<Arc<dyn ExpertStore>> {
        match self.tier {
            Some(tier) => tier.before(Arc::clone(&self.store)),
            None => Ok(Arc::clone(&self.store)),
        }
    }
}

fn write_timeline(path: &Path, bank: &OffloadedExperts) -> Result<()> {
    let Some(timeline) = bank.timeline() else { return Ok(()) };
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut file = BufWriter::new(file);
    let written = timeline.write_chrome_trace(&mut file).and_then(|()| file.flush());
    written.with_context(|| format!("cannot write {}", path.display()))?;
    if timeline.dropped() > 0 {
        eprintln!("{}: only the first {TIMELINE_EVENTS} activities", path.display());
    }
    Ok(())
}

fn open(arguments: &Arguments) -> Result<Workload> {
    let (Some(weights), Some(trace)) = (&arguments.weights, &arguments.trace) else {
        ensure!(arguments.new_tokens > 1, "--new-tokens is {}, give at least 2", arguments.new_tokens);
        let folder = arguments.model.clone().unwrap_or_else(moe_examples::default_model);
        let mut workload = Workload::text(&folder, arguments.new_tokens, arguments.store.reads())?;
        if let Some(weight_type) = arguments.weight_type {
            workload.store = Arc::new(QuantizedExperts::new(workload.store, weight_type)?);
        }
        return Ok(workload);
    };
    let store = MappedStore::open_gguf(std::slice::from_ref(weights))
        .and_then(|store| store.with_reads(arguments.store.reads()))
        .with_context(|| format!("cannot use the experts in {}", weights.display()))?;
    let trace = excerpt(trace, arguments, store.shape().layers)?;
    Workload::trace(trace, store)
}

/// The first layers and tokens of the first sequences of a trace.
fn excerpt(path: &Path, arguments: &Arguments, layers: usize) -> Result<MemoryTrace> {
    let trace = moe_trace::open(path)
        .with_context(|| format!("cannot replay {}; `trace import` reads other formats", path.display()))?;
    for (option, value) in [("--sequences", arguments.sequences), ("--tokens", arguments.tokens)] {
        ensure!(value > 0, "{option} is 0, give at least 1");
    }
    let selection = Selection {
        sequences: Some((0..arguments.sequences.min(trace.len())).collect()),
        layers: Some((0..).take(layers.min(trace.geometry().layers())).map(LayerId).collect()),
        ..Selection::default()
    };
    let view = TraceView::new(trace, &selection)?;
    let mut memory = MemoryTrace::new(view.geometry().clone()).with_domains(view.domains().to_vec());
    for index in 0..view.len() {
        let sequence = view.sequence(index)?;
        memory.push(sequence.tokens(0..arguments.tokens.min(sequence.len())).to_buf())?;
    }
    Ok(memory)
}
