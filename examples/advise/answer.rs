//! The smallest cache that is fast enough, for any trace and machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use expert_cache::{
    Advisor, Choices, CostModel, HardwareProfile, Layout, ModelSize, PolicyKind, PrefetcherKind, SpeedBootstrap,
    Target, Verdict, WhileLoading,
};
use moe_examples::{Files, print_warnings, progress_bar, write_json, write_text};
use moe_trace::{ImportOptions, MemoryTrace, RoutingSource};

use crate::model::parse_bytes;
use crate::report::Report;
use crate::{model, page};

/// Bandwidths of the link in the report, relative to the profile's.
const LINKS: [f64; 7] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A trace file, a directory of trace shards, or a foreign trace that moe-trace can import.
    trace: PathBuf,

    /// The model's sizes: gpt-oss-20b, qwen3-30b-a3b, the folder of a checkpoint (config.json), or a JSON file with
    /// `expert_bytes` of each layer, `expert_weights`, `dense_bytes`, `dense_weights`, `head_bytes`, `head_weights`.
    #[arg(long, value_name = "MODEL")]
    model: String,

    /// Bits of an expert's weight, scales included [default: the named model's, else 16].
    #[arg(long, value_name = "BITS")]
    expert_bits: Option<f64>,

    /// Bits of every other weight [default: the named model's, else 16].
    #[arg(long, value_name = "BITS")]
    dense_bits: Option<f64>,

    /// The machine: datacenter-gpu, desktop-gpu, laptop-gpu, phone, or a file that `advise measure` wrote.
    #[arg(long, value_name = "PROFILE")]
    profile: String,

    /// Experts come from disk, not from host memory.
    #[arg(long)]
    from_disk: bool,

    #[command(flatten)]
    goal: Goal,

    /// Bytes of slots that there are [default: enough for all experts].
    #[arg(long, value_parser = parse_bytes, conflicts_with = "bytes")]
    budget: Option<u64>,

    /// Policies to try; those that know the future (belady, belady-bypass, look-ahead-N)
    /// are the bounds to compare with.
    #[arg(long, value_delimiter = ',', default_value = "lru,lfru-32,s3-fifo,belady,belady-bypass")]
    policies: Vec<PolicyKind>,

    /// Prefetchers to try: none, previous-token, next-layer, markov, history-PASSES; oracle-ACCURACY is a bound.
    #[arg(long, value_delimiter = ',', default_value = "none,markov")]
    prefetchers: Vec<PrefetcherKind>,

    /// Experts that a prefetcher may ask for after each layer [default: those of a token].
    #[arg(long, value_name = "N")]
    prefetched_experts: Option<usize>,

    /// Layouts to try.
    #[arg(long, value_delimiter = ',', default_value = "uniform,allocated,global")]
    layouts: Vec<Layout>,

    /// Slots a layer to try [default: 1 to all experts].
    #[arg(long, value_delimiter = ',')]
    slots: Vec<usize>,

    /// Who computes an expert while it is loaded.
    #[arg(long, value_enum, default_value_t = Who::Device)]
    while_loading: Who,

    /// Use only so many sequences, evenly spread over the trace.
    #[arg(long, value_name = "N")]
    sequences: Option<usize>,

    /// Resamples of the bootstrap.
    #[arg(long, default_value_t = 1000)]
    resamples: usize,

    /// Seed of the bootstrap.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Write everything to this file as JSON.
    #[arg(long, value_name = "FILE", value_parser = moe_examples::output_path())]
    json: Option<PathBuf>,

    /// Write the report with its curves to this file as one HTML page.
    #[arg(long, value_name = "FILE", value_parser = moe_examples::output_path())]
    html: Option<PathBuf>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Goal {
    /// Decode at least so many tokens a second.
    #[arg(long, value_name = "N")]
    tokens_per_second: Option<f64>,

    /// 95 of 100 decoded tokens take at most so many milliseconds.
    #[arg(long, value_name = "MS")]
    p95_ms: Option<f64>,

    /// Be as fast as possible in so many bytes of slots.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Who {
    /// The device, when it has arrived.
    Device,
    /// The host, at once.
    Host,
    /// Whichever is done first.
    Sooner,
}

impl Goal {
    fn target(&self) -> Result<Target> {
        match (self.tokens_per_second, self.p95_ms, self.bytes) {
            (Some(tokens), ..) => Ok(Target::TokensPerSecond(tokens)),
            (_, Some(ms), _) => Ok(Target::P95Seconds(ms * 1e-3)),
            (_, _, Some(bytes)) => Ok(Target::Bytes(bytes)),
            _ => anyhow::bail!("give --tokens-per-second, --p95-ms or --bytes"),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let files = Files::new().reads_trace(&arguments.trace).reads_model(&arguments.model);
    let files = files.reads("the profile", &arguments.profile);
    files.writes("--json", &arguments.json).writes("--html", &arguments.html).check()?;
    let target = arguments.goal.target()?;
    let trace = open(&arguments.trace, arguments.sequences)?;
    let geometry = trace.geometry().clone();
    let size = model::size(&arguments.model, arguments.expert_bits, arguments.dense_bits)?;
    ensure!(
        size.expert_bytes.len() == geometry.layers(),
        "{} has {} layers of experts, the trace {}: choose the model that the trace is of",
        arguments.model,
        size.expert_bytes.len(),
        geometry.layers()
    );
    let profile = profile(&arguments.profile)?;
    let costs = CostModel::new(&profile, &size, arguments.from_disk)?;
    let choices = Choices {
        policies: arguments.policies.clone(),
        prefetchers: arguments.prefetchers.clone(),
        prefetched_experts: arguments.prefetched_experts.unwrap_or(geometry.top_k()),
        layouts: arguments.layouts.clone(),
        slots: arguments.slots.clone(),
        while_loading: match arguments.while_loading {
            Who::Device => WhileLoading::Device,
            Who::Host => WhileLoading::Host,
            Who::Sooner => WhileLoading::Sooner,
        },
        ..Choices::default()
    };
    let advisor = Advisor::new(trace.as_ref(), costs.clone(), size.expert_bytes.clone(), choices)?;
    let bar = progress_bar(0, "simulations");
    let survey = advisor.survey(&|_, total| {
        bar.set_length(total as u64);
        bar.inc(1);
    })?;
    bar.finish_and_clear();

    let verdict = survey.answer(target, arguments.budget)?;
    let bootstrap = SpeedBootstrap { resamples: arguments.resamples, seed: arguments.seed, ..Default::default() };
    let chosen = match verdict {
        Verdict::Met { best } => Some(best),
        Verdict::PolicyFailure { best, .. } | Verdict::WorkingSet { best, .. } => best,
        Verdict::Compute => None,
    };
    let interval = match chosen {
        Some(chosen) => advisor.interval(&survey.candidates[chosen].setup, target.figure(), &bootstrap)?,
        None => None,
    };
    let over_bandwidth = match chosen {
        Some(chosen) => over_bandwidth(&advisor, &profile, &size, arguments.from_disk, &survey, chosen)?,
        None => Vec::new(),
    };
    let report = Report {
        trace: arguments.trace.display().to_string(),
        tokens: tokens(trace.as_ref())?,
        sequences: trace.len(),
        geometry: [geometry.layers(), geometry.experts(), geometry.top_k()],
        model: arguments.model.clone(),
        size,
        profile,
        from_disk: arguments.from_disk,
        costs,
        target,
        budget: arguments.budget,
        verdict,
        interval,
        over_bandwidth,
        survey,
    };
    moe_examples::outln!("{report}");
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
        moe_examples::outln!("JSON: {}", path.display());
    }
    if let Some(path) = &arguments.html {
        write_text(path, &page::render(&report))?;
        moe_examples::outln!("page: {}", path.display());
    }
    Ok(())
}

/// Opens or imports a trace.
fn open(path: &Path, sequences: Option<usize>) -> Result<Box<dyn RoutingSource>> {
    ensure!(path.exists(), "there is no trace {}; quickstart records one of the default model", path.display());
    let is_ours = path.is_dir() || path.extension().is_some_and(|extension| extension == "safetensors");
    let trace: Box<dyn RoutingSource> = if is_ours {
        moe_trace::open(path).with_context(|| format!("cannot open the trace {}", path.display()))?
    } else {
        let imported = moe_trace::import(path, &ImportOptions::default());
        let imported = imported.with_context(|| format!("cannot import the trace {}", path.display()))?;
        print_warnings(imported.import_report());
        Box::new(imported)
    };
    ensure!(!trace.is_empty(), "{} has no sequence; was its recording finished?", path.display());
    let Some(wanted) = sequences.filter(|&wanted| wanted < trace.len()) else { return Ok(trace) };
    ensure!(wanted > 0, "--sequences is 0, give at least 1");
    let mut some = MemoryTrace::new(trace.geometry().clone()).with_domains(trace.domains());
    for number in 0..wanted {
        some.push(trace.sequence(number * trace.len() / wanted)?.to_buf())?;
    }
    Ok(Box::new(some))
}

fn tokens(trace: &dyn RoutingSource) -> Result<usize> {
    Ok((0..trace.len()).map(|index| trace.sequence_len(index)).sum::<Result<_, _>>()?)
}

/// A preset, or a file.
fn profile(name: &str) -> Result<HardwareProfile> {
    if HardwareProfile::presets().any(|preset| preset == name) {
        return Ok(HardwareProfile::preset(name)?);
    }
    let presets = HardwareProfile::presets().collect::<Vec<_>>().join(", ");
    let file = std::fs::File::open(name).with_context(|| {
        format!("--profile is {name:?}: neither one of {presets} nor a file; `advise measure` writes one")
    })?;
    let profile: HardwareProfile =
        serde_json::from_reader(file).with_context(|| format!("{name} is not a hardware profile"))?;
    profile.check().with_context(|| format!("{name} is not a hardware profile"))?;
    Ok(profile)
}

/// Tokens a second over the bandwidth of the link: the chosen setup, and the same slots under every policy.
fn over_bandwidth(
    advisor: &Advisor<'_>,
    profile: &HardwareProfile,
    size: &ModelSize,
    from_disk: bool,
    survey: &expert_cache::Survey,
    chosen: usize,
) -> Result<Vec<crate::report::OverBandwidth>> {
    let chosen = &survey.candidates[chosen].setup;
    let same_slots = survey.candidates.iter().map(|candidate| &candidate.setup).filter(|setup| {
        setup.bytes == chosen.bytes && setup.layout == chosen.layout && setup.prefetcher == chosen.prefetcher
    });
    let mut lines = Vec::new();
    for setup in same_slots {
        let mut line = crate::report::OverBandwidth { setup: setup.clone(), points: Vec::new() };
        for factor in LINKS {
            let mut other = profile.clone();
            other.link.bytes_per_second *= factor;
            let candidate = advisor.at(CostModel::new(&other, size, from_disk)?)?.evaluate(setup.clone())?;
            line.points.push((other.link.bytes_per_second, candidate.speed.decode.tokens_per_second()));
        }
        lines.push(line);
    }
    Ok(lines)
}
