//! The smallest cache that is fast enough, for any trace and machine.

mod model;
mod page;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use expert_cache::{
    Advisor, CacheError, Choices, Convention, CostModel, HardwareProfile, Layout, ModelSize, PolicyKind,
    PrefetcherKind, SpeedBootstrap, Target, Verdict, WhileLoading,
};
use moe_trace::{MemoryTrace, RoutingSource};
use moescope_cli::{
    Files, Foreign, NO_COST, POSITIVE, Provenance, each_once, layers_without_access, number, progress_bar, whole,
    write_json, write_text,
};

use self::model::Model;
pub(crate) use self::model::parse_bytes;
use self::report::Report;

/// Bandwidths of the link in the report, relative to the profile's.
const LINKS: [f64; 7] = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];

/// Find the smallest cache, its policy and prefetcher that make a model fast enough on a machine.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  moescope plan trace.safetensors --model gpt-oss-20b --profile laptop-gpu --tokens-per-second 20\n  moescope plan trace.safetensors --model qwen3-30b-a3b --profile profile.json --bytes 4GiB --html plan.html"
)]
pub(crate) struct Arguments {
    /// A trace file, a directory of trace shards, or a foreign trace that moe-trace can import.
    trace: PathBuf,

    /// The model's sizes: gpt-oss-20b, qwen3-30b-a3b, a config.json or its folder, or a JSON file with `expert_bytes` of each
    /// layer, `expert_weights`, `dense_bytes`, `dense_weights`, `head_bytes`, `head_weights`, and `experts` and `top_k` to check
    /// the trace against.
    #[arg(long, value_name = "MODEL")]
    model: String,

    /// Bits of an expert's weight, scales included [default: the named model's, else 16].
    #[arg(long, value_name = "BITS", value_parser = number(0.01..=64.0))]
    expert_bits: Option<f64>,

    /// Bits of every other weight [default: the named model's, else 16].
    #[arg(long, value_name = "BITS", value_parser = number(0.01..=64.0))]
    dense_bits: Option<f64>,

    /// The machine: datacenter-gpu, desktop-gpu, laptop-gpu, phone, or a file that `moescope measure` wrote.
    #[arg(long, value_name = "PROFILE")]
    profile: String,

    /// Experts come from disk, not from host memory.
    #[arg(long)]
    from_disk: bool,

    #[command(flatten)]
    goal: Goal,

    /// Bytes of slots that there are [default: enough for all experts].
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, conflicts_with = "bytes")]
    budget: Option<u64>,

    /// Policies to try; those that know the future (belady, belady-bypass, look-ahead-N)
    /// are the bounds to compare with.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "lru,lfru-32,s3-fifo,belady,belady-bypass"
    )]
    policies: Vec<PolicyKind>,

    /// Prefetchers to try: none, previous-token, next-layer, markov, history-PASSES; oracle-ACCURACY is a bound.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "none,markov")]
    prefetchers: Vec<PrefetcherKind>,

    /// Experts that a prefetcher may ask for after each layer [default: those of a token].
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=65535))]
    prefetched_experts: Option<usize>,

    /// Layouts to try.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "uniform,allocated,global")]
    layouts: Vec<Layout>,

    /// Slots a layer to try [default: 1 to all experts].
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = whole::<usize>(1..=65535))]
    slots: Vec<usize>,

    /// Who computes an expert while it is loaded.
    #[arg(long, value_enum, default_value_t = Who::Device)]
    while_loading: Who,

    /// Use only so many sequences, evenly spread over the trace.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..))]
    sequences: Option<usize>,

    /// Resamples of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = whole::<usize>(1..=SpeedBootstrap::MOST_RESAMPLES as u64))]
    resamples: usize,

    /// Seed of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<u64>(0..))]
    seed: u64,

    /// Write everything to this file as JSON.
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    json: Option<PathBuf>,

    /// Write the report with its curves to this file as one HTML page.
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    html: Option<PathBuf>,

    #[command(flatten)]
    foreign: Foreign,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Goal {
    /// Decode at least so many tokens a second.
    #[arg(long, value_name = "N", value_parser = number(POSITIVE))]
    tokens_per_second: Option<f64>,

    /// 95 of 100 decoded tokens take at most so many milliseconds.
    #[arg(long, value_name = "MS", value_parser = number(POSITIVE))]
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

impl Arguments {
    /// Refuses lists that repeat themselves, and options that would be ignored.
    fn check(&self) -> Result<()> {
        each_once("--policies", &self.policies)?;
        each_once("--prefetchers", &self.prefetchers)?;
        each_once("--layouts", &self.layouts)?;
        each_once("--slots", &self.slots)?;
        let prefetches = self.prefetchers.iter().any(|&prefetcher| prefetcher != PrefetcherKind::None);
        ensure!(
            prefetches || self.prefetched_experts.is_none(),
            "--prefetched-experts counts what --prefetchers predict, give one that is not none"
        );
        Ok(())
    }

    /// The option that limits the bytes of slots, if one does.
    fn most_bytes(&self) -> Option<(&'static str, u64)> {
        let target = self.goal.bytes.map(|bytes| ("--bytes", bytes));
        target.or(self.budget.map(|bytes| ("--budget", bytes)))
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    arguments.check()?;
    let files = Files::new().reads_trace(&arguments.trace).reads_model(&arguments.model);
    let files =
        files.reads("the profile", &arguments.profile).reads_all("the file of --config", &arguments.foreign.config);
    files.writes("--json", &arguments.json).writes("--html", &arguments.html).check()?;
    let target = arguments.goal.target()?;
    let (trace, provenance) = open(&arguments.trace, &arguments.foreign, arguments.sequences)?;
    let geometry = trace.geometry().clone();
    let model = Model::find(&arguments.model, arguments.expert_bits, arguments.dense_bits)?;
    model.check(&arguments.model, &geometry)?;
    let size = model.size;
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
    let advisor = match Advisor::new(trace.as_ref(), costs.clone(), size.expert_bytes.clone(), choices) {
        Err(CacheError::NoDecodedTokens) => bail!(
            "{} has no decoded token, and the speed of decoding is what is asked for; if its tokens were decoded, import \
             them with `moescope trace import --token-phase decode`",
            arguments.trace.display()
        ),
        advisor => advisor?,
    };
    if let Some((option, bytes)) = arguments.most_bytes().filter(|&(_, bytes)| bytes < advisor.least_bytes()) {
        bail!("{option} is {bytes} bytes, the smallest cache to try takes {}", advisor.least_bytes());
    }
    let links = links(&profile, &size, arguments.from_disk)?;
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
        Some(chosen) => over_bandwidth(&advisor, &links, &survey, chosen)?,
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
        hit_rate_convention: Convention::Engine,
        survey,
        provenance,
    };
    moescope_cli::outln!("{report}");
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
        moescope_cli::outln!("JSON: {}", path.display());
    }
    if let Some(path) = &arguments.html {
        write_text(path, &page::render(&report))?;
        moescope_cli::outln!("page: {}", path.display());
    }
    Ok(())
}

/// Opens or imports a trace, or some of its sequences.
fn open(path: &Path, foreign: &Foreign, sequences: Option<usize>) -> Result<(Box<dyn RoutingSource>, Provenance)> {
    ensure!(
        path.exists() || path == Path::new("-"),
        "there is no trace {}; quickstart records one of the default model",
        path.display()
    );
    let trace = foreign.open(path)?;
    ensure!(!trace.is_empty(), "{} has no sequence; was its recording finished?", path.display());
    let provenance = Provenance::of(trace.as_ref());
    let trace = match sequences.filter(|&wanted| wanted < trace.len()) {
        Some(wanted) => {
            let mut some = MemoryTrace::new(trace.geometry().clone()).with_domains(trace.domains());
            for number in 0..wanted {
                some.push(trace.sequence(number * trace.len() / wanted)?.to_buf())?;
            }
            Box::new(some)
        }
        None => trace,
    };
    let unused = layers_without_access(trace.as_ref())?;
    Ok((trace, provenance.with_unused_layers(unused, NO_COST)))
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
        format!("--profile is {name:?}: neither one of {presets} nor a file; `moescope measure` writes one")
    })?;
    let profile: HardwareProfile =
        serde_json::from_reader(file).with_context(|| format!("{name} is not a hardware profile"))?;
    profile.check().with_context(|| format!("{name} is not a hardware profile"))?;
    Ok(profile)
}

/// The costs at each bandwidth of the link.
fn links(profile: &HardwareProfile, size: &ModelSize, from_disk: bool) -> Result<Vec<(f64, CostModel)>> {
    let at = |factor: f64| {
        let mut other = profile.clone();
        other.link.bytes_per_second *= factor;
        let costs = CostModel::new(&other, size, from_disk);
        Ok((other.link.bytes_per_second, costs.with_context(|| format!("with {factor} times the link's bandwidth"))?))
    };
    LINKS.into_iter().map(at).collect()
}

/// Tokens a second over the bandwidth of the link: the chosen setup, and the same slots under every policy.
fn over_bandwidth(
    advisor: &Advisor<'_>,
    links: &[(f64, CostModel)],
    survey: &expert_cache::Survey,
    chosen: usize,
) -> Result<Vec<report::OverBandwidth>> {
    let chosen = &survey.candidates[chosen].setup;
    let same_slots = survey.candidates.iter().map(|candidate| &candidate.setup).filter(|setup| {
        setup.bytes == chosen.bytes && setup.layout == chosen.layout && setup.prefetcher == chosen.prefetcher
    });
    let mut lines = Vec::new();
    for setup in same_slots {
        let mut line = report::OverBandwidth { setup: setup.clone(), points: Vec::new() };
        for (bytes_per_second, costs) in links {
            let candidate = advisor.at(costs.clone())?.evaluate(setup.clone())?;
            line.points.push((*bytes_per_second, candidate.speed.decode.tokens_per_second()));
        }
        lines.push(line);
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use moe_trace::{Geometry, Phase, SequenceBuf, write_trace};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    /// Two layers of 8 experts, top-2, of one sequence whose tokens are all of one phase.
    fn trace(folder: &Path, phase: Phase) -> PathBuf {
        let geometry = Geometry::decoder(2, 8, 2).unwrap();
        let mut trace = MemoryTrace::new(geometry.clone());
        let experts = (0..40u16).flat_map(|row| [row % 8, (row + 1 + row % 3) % 8]).collect();
        trace.push(SequenceBuf::from_experts(&geometry, experts, phase).unwrap()).unwrap();
        let path = folder.join("trace.safetensors");
        write_trace(&path, &trace).unwrap();
        path
    }

    /// Runs `answer` on a trace with experts of 1000 bytes.
    fn answer(phase: Phase, line: &str) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let sizes = folder.path().join("sizes.json");
        let text = r#"{"expert_bytes": [1000, 1000], "expert_weights": 500, "dense_bytes": 100, "dense_weights": 50,
            "head_bytes": 100, "head_weights": 50}"#;
        std::fs::write(&sizes, text).unwrap();
        let trace = trace(folder.path(), phase).display().to_string();
        let sizes = sizes.display().to_string();
        let fixed = ["answer", &trace, "--model", &sizes, "--profile", "laptop-gpu"];
        run(&Line::try_parse_from(fixed.into_iter().chain(line.split(' ')))?.arguments)
    }

    fn refusal(line: &str) -> String {
        format!("{:#}", answer(Phase::Decode, line).unwrap_err())
    }

    #[test]
    fn a_trace_without_decoded_tokens_is_refused_with_the_option_that_helps() {
        answer(Phase::Decode, "--tokens-per-second 20 --slots 4 --policies lru").unwrap();
        let error = answer(Phase::Prefill, "--tokens-per-second 20 --slots 4").unwrap_err().to_string();
        assert!(error.contains("has no decoded token"), "{error}");
        assert!(error.ends_with("`moescope trace import --token-phase decode`"), "{error}");
    }

    /// A recording of another program, of which the number of experts is inferred and one layer has no access.
    #[test]
    fn json_and_page_say_what_was_inferred_of_the_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let rows: String =
            (0..9).map(|token| format!("{token},0,{},decode\n{token},1,-1,decode\n", token % 4)).collect();
        std::fs::write(path("rows.csv"), format!("token,layer,expert,phase\n{rows}")).unwrap();
        let sizes = r#"{"expert_bytes": [1000, 1000], "expert_weights": 500, "dense_bytes": 100, "dense_weights": 50,
            "head_bytes": 100, "head_weights": 50}"#;
        std::fs::write(path("sizes.json"), sizes).unwrap();
        let (trace, model, json, html) = (path("rows.csv"), path("sizes.json"), path("a.json"), path("a.html"));
        let line = ["answer", &trace, "--model", &model, "--profile", "laptop-gpu", "--p95-ms", "5", "--slots", "2"];
        let line = line.into_iter().chain(["--policies", "lru", "--sequences", "1", "--json", &json, "--html", &html]);
        run(&Line::try_parse_from(line).unwrap().arguments).unwrap();
        let found: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        assert_eq!(found["unused_layers"], serde_json::json!([1]));
        assert_eq!(found["import_warnings"][0]["kind"], "experts-inferred");
        let page = std::fs::read_to_string(html).unwrap();
        for expected in ["<td>experts-inferred</td>", "<td>no token uses an expert of MoE layer 1: "] {
            assert!(page.contains(expected), "{expected}");
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused_before_any_simulation() {
        let goal = "--tokens-per-second 20";
        for (line, expected) in [
            ("--tokens-per-second 0", "give a number above 0"),
            ("--tokens-per-second=-1", "give a number above 0"),
            ("--p95-ms=nan", "give a number above 0"),
            (&format!("{goal} --resamples 18446744073709551615"), "give a whole number from 1 to 100000"),
            (&format!("{goal} --resamples 0"), "give a whole number from 1 to 100000"),
            (&format!("{goal} --expert-bits 0"), "give a number from 0.01 to 64"),
            (&format!("{goal} --slots 9"), "capacity is 9 slots, allowed are 1..=8"),
            (&format!("{goal} --slots 4,4"), "--slots has 4 twice, give it once"),
            (&format!("{goal} --policies lru,lfru-0"), "the parameter of policy lfru-0 must be at least 1"),
            (&format!("{goal} --prefetchers oracle-2"), "accuracy is 2, allowed are 0..=1"),
            (
                &format!("{goal} --prefetchers none --prefetched-experts 3"),
                "--prefetched-experts counts what --prefetchers predict, give one that is not none",
            ),
            ("--bytes 1", "--bytes is 1 bytes, the smallest cache to try takes 2000"),
            (&format!("{goal} --budget 1kB"), "--budget is 1000 bytes, the smallest cache to try takes 2000"),
        ] {
            let error = refusal(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
