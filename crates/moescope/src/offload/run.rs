//! Predicted and measured speed of the runtime, side by side.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use expert_cache::{HardwareProfile, PolicyKind, PrefetcherKind, Transfer};
use moe_offload::{
    ExpertStore, LayerReport, OffloadOptions, OffloadedExperts, QuantizedExperts, ResidentExperts, Transfers,
    WeightType, measure,
};
use moe_trace::WholeFile;
use moescope_cli::{
    Files, Foreign, cache_sizes, each_once, host_experts, number, open_checkpoint, whole, write_json, write_text,
};

use super::calibrate::{Prices, calibrate, prices};
use super::case::{Case, Misses, Served, cases};
use super::disk_probe::DiskProbe;
use super::excerpt::Excerpt;
use super::expert_files;
use super::live::{live_bar, spinner, watched};
use super::page;
use super::report::{Report, Row};
use super::steps::Steps;
use super::stores::{Ahead, HostTier, Place, StoreArguments};
use super::workload::Workload;

/// Run a model with most of its experts out of the cache, and compare its speed with the prediction.
///
/// Measures tokens per second over cache sizes, policies, prefetchers and ways to serve a miss.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  moescope run --rho 1,2,4 --policies lru,belady\n  moescope run --weights experts.gguf --trace decode.safetensors --store disk"
)]
pub(crate) struct Arguments {
    /// Folder of an OLMoE checkpoint in the Hugging Face layout, which continues prompts [default: the model of this
    /// repository].
    #[arg(long, value_name = "DIR", conflicts_with = "trace")]
    model: Option<PathBuf>,

    /// Take the experts from this GGUF file: those of the model, which `moescope quantize` writes, or for a trace also random
    /// ones, which `moescope generate-experts` writes.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,

    /// Replay this trace, or file of another recorder, instead of running a model.
    #[arg(long, value_name = "FILE", requires = "weights")]
    trace: Option<PathBuf>,

    /// Sequences of the trace to replay, evenly chosen, and as many of its layers as the weights have.
    #[arg(long, value_name = "N", default_value_t = 2, requires = "trace", value_parser = whole::<usize>(1..))]
    sequences: usize,

    /// Tokens of each sequence to replay, from the first on.
    #[arg(long, value_name = "N", default_value_t = 128, requires = "trace", value_parser = whole::<usize>(1..))]
    tokens: usize,

    /// Quantize the model's experts first, to `q8_0` for example.
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "weights")]
    weight_type: Option<WeightType>,

    #[command(flatten)]
    store: StoreArguments,

    /// Cache sizes: slots a layer over the experts of a token [default: those of 1,1.5,2,3,4 that a layer has experts for].
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = number(1.0..))]
    rho: Option<Vec<f64>>,

    /// Policies to try, any of docs/policies.md; those that look ahead know the trace.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "lru,lfu,belady")]
    policies: Vec<PolicyKind>,

    /// Prefetchers to try: none, previous-token, next-layer, markov, history-PASSES, oracle-ACCURACY.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "none")]
    prefetchers: Vec<PrefetcherKind>,

    /// What misses do.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "load")]
    misses: Vec<Misses>,

    /// Predictions that are considered after every layer [default: 2].
    #[arg(long, value_name = "N", value_parser = whole::<usize>(0..=65535))]
    per_request: Option<usize>,

    /// Threads that copy experts beside the compute; 0 copies on the computing thread.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>(0..=1024))]
    transfers: usize,

    /// Tokens to generate for each prompt.
    #[arg(long, value_name = "N", default_value_t = 64, conflicts_with = "trace", value_parser = whole::<usize>(2..=1 << 24))]
    new_tokens: usize,

    /// Times that every run is repeated; of every step the best counts, or where experts are read past the page cache, the mean.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole::<usize>(1..))]
    rounds: usize,

    /// Run the first case once more, and write what its threads did to this file as a Chrome trace, for Perfetto or
    /// `chrome://tracing`.
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    timeline: Option<PathBuf>,

    /// Write all figures to this file as JSON.
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    json: Option<PathBuf>,

    /// Write plots to this file as a self-contained page.
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    html: Option<PathBuf>,

    #[command(flatten)]
    foreign: Foreign,
}

/// Cache sizes unless others are given.
const RHO: [f64; 5] = [1.0, 1.5, 2.0, 3.0, 4.0];

/// Activities that a timeline holds, at most.
const TIMELINE_EVENTS: usize = 1 << 20;

/// What rounds of runs gave.
#[derive(Default)]
struct Measured {
    resident: Steps,
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
    /// Seconds of an expert from disk in each round, where no page cache is in between.
    disk_seconds: Vec<f64>,
}

/// The experts, and how their loads are measured.
struct Source {
    transfers: Transfers,
    tier: Option<HostTier>,
    store: Arc<dyn ExpertStore>,
    /// How fast files were read before the first run, if they are read past the page cache.
    disk: Option<Transfer>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.trace.is_none() {
        arguments.foreign.refuse("give a --trace or leave it out")?;
    }
    let weights = arguments.weights.as_deref().map(expert_files::parts).transpose()?.unwrap_or_default();
    let files = Files::new().reads_all("a file of the weights", &weights);
    let files = files
        .reads_all("a file of the model", &arguments.model)
        .reads_all("the file of --config", &arguments.foreign.config);
    let files = arguments.trace.iter().fold(files, Files::reads_trace);
    let files = files.writes("--json", &arguments.json).writes("--html", &arguments.html);
    files.writes("--timeline", &arguments.timeline).check()?;
    let transfers = Transfers::threads(arguments.transfers);
    let (tier, ahead) = (arguments.store.host_tier()?, arguments.store.ahead()?);
    let per_request = arguments.per_request(ahead)?;
    let Arguments { rho, policies, prefetchers, misses, .. } = arguments;
    each_once("--policies", policies)?;
    each_once("--prefetchers", prefetchers)?;
    each_once("--misses", misses)?;
    let mut workload = open(arguments)?;
    ensure!(
        ahead.is_none() || tier.is_some() || !workload.uncached,
        "--read-ahead has nowhere to read to: loads read past the page cache; give --host-gib or --reads cached"
    );
    let sizes = cache_sizes(rho.as_deref(), &RHO, &workload.geometry())?;
    let cases = cases(&sizes, policies, prefetchers, misses, (per_request, ahead), transfers);
    let from_disk = arguments.store.store == Place::Disk;
    workload.too_large &= from_disk;
    let store: Arc<dyn ExpertStore> = match arguments.store.store {
        Place::Host => Arc::new(host_experts(&*workload.store)?),
        Place::Disk => Arc::clone(&workload.store),
    };
    let size = workload.size();
    let before = spinner();
    before.set_message("measuring the disk");
    let probed = from_disk && workload.uncached;
    let mut probe = probed.then(|| DiskProbe::new(Arc::clone(&workload.store))).transpose()?;
    let disk = match &mut probe {
        Some(probe) => {
            probe.alone();
            let bytes_per_second = size.expert_bytes[0] as f64 / probe.mean_seconds()?;
            Some(Transfer { latency_seconds: 0.0, bytes_per_second })
        }
        None => None,
    };
    let source = Source { transfers, tier, store, disk };

    // So that the first run that counts does not also pay for cold memory; it tells what all the others must give. Where not all
    // experts fit in memory, they are computed with where the files are mapped.
    before.set_message("computing once with the experts where they are");
    let (mapped, outcome) = workload.run(Arc::new(ResidentExperts::from_store(&*source.store)?), &mut || ())?;
    before.set_message("measuring the machine");
    let mut measured = Measured { profiles: vec![source.profile()?], ..Measured::default() };
    measured.cases.resize_with(cases.len(), Default::default);
    let copy_seconds = tier.map(|tier| tier.copy_seconds(Arc::clone(&workload.store))).transpose()?;
    let host_copy_seconds = copy_seconds.unwrap_or_default();
    let prices = |profiles: &[HardwareProfile]| -> Result<Prices> {
        let prices = prices(profiles, &size, from_disk, transfers.overlap())?;
        Ok(Prices { host_copy_seconds, ..prices })
    };
    let decided_by = prices(&measured.profiles)?;
    let served = Served::new(workload.routing(&outcome), &*workload.store, tier, decided_by)?;

    before.finish_and_clear();
    let bar = live_bar(arguments.rounds * (cases.len() + 1));
    let mut run = |case: &Case, options: OffloadOptions<'_>| -> Result<(Arc<OffloadedExperts>, Steps, Option<f64>)> {
        let bank = Arc::new(OffloadedExperts::new(source.before_the_slots()?, &Device::Cpu, options)?);
        let mut probed = |read: fn(&mut DiskProbe)| probe.iter_mut().for_each(read);
        // Threads would prefetch in the time between steps, which does not count.
        let apart = case.prefetches_beside_compute();
        if apart {
            probed(DiskProbe::alone);
        }
        let mut between = || {
            if !apart {
                probed(DiskProbe::between_steps);
            }
        };
        let (steps, found) = watched(&bar, &case.to_string(), &bank, || workload.run(bank.clone(), &mut between))?;
        ensure!(found == outcome, "{case}: the offloaded run computed otherwise than the resident one");
        if apart {
            probed(DiskProbe::alone);
        }
        Ok((bank, steps, probe.as_mut().map(DiskProbe::mean_seconds).transpose()?))
    };
    for round in 0..arguments.rounds {
        // In turn, so that a machine that slows down does so for all.
        if round > 0 {
            measured.profiles.push(source.profile()?);
        }
        measured.resident.merge(workload.run(Arc::new(workload.all_resident(&source.store)?), &mut || ())?.0);
        bar.inc(1);
        for (case, of_case) in cases.iter().zip(&mut measured.cases) {
            let (bank, steps, disk_seconds) = run(case, served.options(case)?)?;
            of_case.bank = bank.report()?.total;
            match disk_seconds {
                // As fast as it was, not as fast as it can be: that of the disk is a mean, too.
                Some(seconds) => {
                    of_case.steps.append(steps);
                    of_case.disk_seconds.push(seconds);
                }
                None => of_case.steps.merge(steps),
            }
            bar.inc(1);
        }
    }
    if let (Some(path), Some(case)) = (&arguments.timeline, cases.first()) {
        let (bank, ..) = run(case, served.options(case)?.record_timeline(TIMELINE_EVENTS))?;
        write_timeline(path, &bank)?;
    }
    bar.finish_and_clear();

    let mut prices = prices(&measured.profiles)?;
    calibrate(&served, &mut prices, &measured.resident)?;
    let row = |(case, of_case): (&Case, &OfCase)| -> Result<Row> {
        let mut prices = prices.clone();
        if !of_case.disk_seconds.is_empty() {
            prices.disk_seconds = of_case.disk_seconds.iter().sum::<f64>() / of_case.disk_seconds.len() as f64;
        }
        let predicted = served.predict(case, &prices)?;
        Ok(Row::new(case, &predicted, &of_case.steps, &of_case.bank, prices.disk_seconds))
    };
    let rows = cases.iter().zip(&measured.cases).map(row).collect::<Result<_>>()?;
    let mapped = workload.too_large.then_some(&mapped);
    let report = Report::new(&workload, &prices, &measured.resident, mapped, rows);
    moescope_cli::outln!("{report}");
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
    }
    if let Some(path) = &arguments.html {
        write_text(path, &page::render(&report))?;
    }
    Ok(())
}

impl Arguments {
    /// Predictions considered after every layer.
    fn per_request(&self, ahead: Option<Ahead>) -> Result<usize> {
        let predicts = self.prefetchers.iter().any(|&kind| kind != PrefetcherKind::None);
        ensure!(
            predicts || ahead.is_none(),
            "--read-ahead reads what --prefetchers predict, give one that is not none"
        );
        match self.per_request {
            Some(0) if ahead.is_none() => {
                bail!("--per-request is 0, give at least 1, --read-ahead or --prefetchers none")
            }
            Some(_) if !predicts => {
                bail!("--per-request counts what --prefetchers predict, give one that is not none")
            }
            per_request => Ok(per_request.unwrap_or(2)),
        }
    }
}

impl Source {
    /// What the machine takes now.
    fn profile(&self) -> Result<HardwareProfile> {
        let profile = measure("here", &self.store, &Device::Cpu, self.transfers)?;
        Ok(HardwareProfile { disk: self.disk.unwrap_or(profile.disk), ..profile })
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
    let write = || {
        let mut file = WholeFile::create(path)?;
        timeline.write_chrome_trace(&mut file)?;
        file.commit()
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    if timeline.dropped() > 0 {
        moescope_cli::errln!("{}: only the first {TIMELINE_EVENTS} activities", path.display());
    }
    Ok(())
}

fn open(arguments: &Arguments) -> Result<Workload> {
    let quantized = arguments.weight_type.is_some() && arguments.store.store == Place::Disk;
    ensure!(
        !quantized,
        "--type would quantize with every load from disk; `moescope quantize` writes a file for --weights"
    );
    let reads = arguments.store.reads();
    let weights = arguments.weights.as_deref().map(|path| expert_files::of_gguf(path, reads)).transpose()?;
    let weights = match (&arguments.trace, weights) {
        (Some(trace), Some(weights)) => {
            let Arguments { sequences, tokens, .. } = *arguments;
            let excerpt = Excerpt { layers: weights.shape().layers, sequences, tokens, prefill: None };
            return Workload::trace(excerpt.of(trace, &arguments.foreign)?, weights);
        }
        (_, weights) => weights,
    };
    let checkpoint = open_checkpoint(arguments.model.as_deref())?;
    let experts = weights.map_or_else(|| expert_files::of_checkpoint(&checkpoint, reads), Ok)?;
    let mut workload = Workload::text(&checkpoint, experts, arguments.new_tokens)?;
    if let Some(weight_type) = arguments.weight_type {
        workload.store = Arc::new(QuantizedExperts::new(workload.store, weight_type)?);
    }
    Ok(workload)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    fn refusal(line: &str) -> String {
        match crate::Arguments::try_parse_from(["moescope", "run"].into_iter().chain(line.split(' '))) {
            Err(error) => error.to_string(),
            Ok(arguments) => format!("{:#}", crate::run(&arguments.command).unwrap_err()),
        }
    }

    #[test]
    fn values_that_cannot_be_and_options_that_do_nothing_are_refused_before_any_run() {
        for (line, expected) in [
            ("--rho=-1", "invalid value '-1' for '--rho <LIST>': give a number of at least 1"),
            ("--rho 1e9", "--rho is 1000000000, with 32 experts per layer and 4 per token it must be at most 8.00"),
            ("--rho 2,2", "--rho has 2 twice, give it once"),
            ("--rounds 0", "give a whole number of at least 1"),
            ("--policies lru,lfru-0", "the parameter of policy lfru-0 must be at least 1"),
            ("--policies lru,lru", "--policies has lru twice, give it once"),
            ("--prefetchers oracle-2", "accuracy is 2, allowed are 0..=1"),
            ("--per-request 3", "--per-request counts what --prefetchers predict, give one that is not none"),
            ("--sequences 0", "give a whole number of at least 1"),
            (
                "--sequences 3",
                "the following required arguments were not provided:\n  --weights <FILE>\n  --trace <FILE>",
            ),
            ("--tokens 3", "the following required arguments were not provided:\n  --weights <FILE>\n  --trace <FILE>"),
            ("--new-tokens 1", "give a whole number from 2 to 16777216"),
            ("--experts 4", "--experts says how a trace is read, give a --trace or leave it out"),
            ("--strict", "--strict says how a trace is read, give a --trace or leave it out"),
            (
                "--store disk --reads direct --prefetchers markov --read-ahead 2",
                "--read-ahead has nowhere to read to: loads read past the page cache; give --host-gib or --reads cached",
            ),
            ("--store disk --host-gib 1 --host-policy belady", "--host-policy is belady, which needs to know"),
        ] {
            let error = refusal(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
