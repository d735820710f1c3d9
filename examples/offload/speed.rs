//! Predicted and measured speed of the runtime, side by side.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use expert_cache::{HardwareProfile, PolicyKind, PrefetcherKind};
use moe_examples::{progress_bar, write_json};
use moe_offload::{
    ExpertStore, HostStore, MappedStore, OffloadedExperts, QuantizedExperts, ResidentExperts, Transfers, WeightType,
    measure, measure_disk,
};
use moe_trace::{LayerId, MemoryTrace, RoutingSource, Selection, TraceView};

use crate::calibrate::{calibrate, costs};
use crate::case::{Case, Served, cases};
use crate::page;
use crate::report::{Report, Row};
use crate::steps::Steps;
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

    /// Where the experts that are not in the cache are.
    #[arg(long, value_enum, default_value_t = Store::Host)]
    store: Store,

    /// Cache sizes: slots a layer over the experts of a token.
    #[arg(long, value_delimiter = ',', default_value = "1,1.5,2,3,4")]
    rho: Vec<f64>,

    /// Policies to try, any of docs/policies.md; those that look ahead know the trace.
    #[arg(long, value_delimiter = ',', default_value = "lru,lfu,belady")]
    policies: Vec<PolicyKind>,

    /// Prefetchers to try: none, previous-token, next-layer, markov, history-PASSES, oracle-ACCURACY.
    #[arg(long, value_delimiter = ',', default_value = "none")]
    prefetchers: Vec<PrefetcherKind>,

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

    /// Write all figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write plots to this file as a self-contained page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A store of expert weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Store {
    /// Host memory.
    Host,
    /// The checkpoint files, memory-mapped.
    Disk,
}

/// What rounds of runs gave.
struct Measured {
    resident: Steps,
    /// Of each case.
    cases: Vec<Steps>,
    /// One a round.
    profiles: Vec<HardwareProfile>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "--rounds is 0, give at least 1");
    let transfers = Transfers::threads(arguments.transfers);
    // Before anything maps the files: what is mapped and touched stays in memory.
    let disk = match (&arguments.weights, arguments.store) {
        (Some(weights), Store::Disk) => {
            let weights = std::slice::from_ref(weights);
            Some(measure_disk(weights, || MappedStore::open_gguf(weights))?)
        }
        _ => None,
    };
    let cases = cases(&arguments.rho, &arguments.policies, &arguments.prefetchers, arguments.per_request, transfers)?;
    let workload = open(arguments)?;
    let store: Arc<dyn ExpertStore> = match arguments.store {
        Store::Host => Arc::new(HostStore::from_store(&*workload.store)?),
        Store::Disk => Arc::clone(&workload.store),
    };
    let resident = Arc::new(ResidentExperts::from_store(&*store)?);
    // Once for nothing, so that the first run does not also pay for cold memory; it tells what all the others must give.
    let (_, outcome) = workload.run(resident.clone())?;
    let served = Served::new(workload.routing(&outcome))?;

    let bar = progress_bar(arguments.rounds * (cases.len() + 1), "runs");
    let mut measured =
        Measured { resident: Steps::default(), cases: vec![Steps::default(); cases.len()], profiles: Vec::new() };
    for _ in 0..arguments.rounds {
        // In turn, so that a machine that slows down does so for all.
        let profile = measure("here", &store, &Device::Cpu, transfers)?;
        measured.profiles.push(HardwareProfile { disk: disk.unwrap_or(profile.disk), ..profile });
        measured.resident.merge(workload.run(resident.clone())?.0);
        bar.inc(1);
        for (case, best) in cases.iter().zip(&mut measured.cases) {
            let bank = OffloadedExperts::new(Arc::clone(&store), &Device::Cpu, served.options(case)?)?;
            let (steps, found) = workload.run(Arc::new(bank))?;
            ensure!(found == outcome, "{case}: the offloaded run computed otherwise than the resident one");
            best.merge(steps);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

    let mut costs = costs(&measured.profiles, &workload.size(), arguments.store == Store::Disk)?;
    costs.overlap = transfers.overlap();
    calibrate(&served, &mut costs, &measured.resident)?;
    let row = |(case, steps): (&Case, &Steps)| -> Result<Row> {
        let (speed, counts) = served.predict(case, &costs)?;
        Ok(Row::new(case, case.slots(served.geometry()), &counts, &speed, steps))
    };
    let rows = cases.iter().zip(&measured.cases).map(row).collect::<Result<_>>()?;
    let report = Report::new(&costs, &measured.resident, rows);
    println!("{report}");
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    if let Some(path) = &arguments.html {
        std::fs::write(path, page::render(&report)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn open(arguments: &Arguments) -> Result<Workload> {
    let (Some(weights), Some(trace)) = (&arguments.weights, &arguments.trace) else {
        ensure!(arguments.new_tokens > 1, "--new-tokens is {}, give at least 2", arguments.new_tokens);
        let folder = arguments.model.clone().unwrap_or_else(moe_examples::default_model);
        let mut workload = Workload::text(&folder, arguments.new_tokens)?;
        if let Some(weight_type) = arguments.weight_type {
            workload.store = Arc::new(QuantizedExperts::new(workload.store, weight_type)?);
        }
        return Ok(workload);
    };
    let store = MappedStore::open_gguf(std::slice::from_ref(weights))
        .with_context(|| format!("cannot use the experts in {}", weights.display()))?;
    let trace = excerpt(trace, arguments, store.shape().layers)?;
    Workload::trace(trace, Arc::new(store))
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
