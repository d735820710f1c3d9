//! The whole way on one model: capture, measure, simulate, offload.
//!
//! ```text
//! cargo run --release --example quickstart
//! ```

mod measure;
mod page;
mod prompts;
mod report;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::DType;
use clap::Parser;
use expert_cache::PolicyKind;
use moe_model::Sampling;
use moe_offload::ExpertStore;
use moe_trace::write_trace;
use moescope_cli::{
    DeviceName, Files, host_experts, mapped_experts, number, open_checkpoint, slots_of, whole, write_json, write_text,
};

use crate::report::{Generation, Report};
use moescope_cli::Prompt;

/// Show how consistent a model's routing is and what that means for a small expert cache.
///
/// Generates text from prompts of several domains while recording the router, saves the trace, measures SRP and the hit
/// rates of cache policies on it, then generates the same text again with most experts outside the cache and compares:
/// text, hits against the simulation, bytes moved, tokens per second.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Folder of an OLMoE checkpoint in the Hugging Face layout [default: the model of this repository].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Text files to take prompts from, a domain each [default: built-in prompts of several domains].
    #[arg(long, value_name = "FILE", num_args = 1..)]
    text: Vec<PathBuf>,

    /// Tokens of each prompt cut from a text file [default: 128, or as many as the model has positions for].
    #[arg(long, value_name = "N", requires = "text", value_parser = whole::<usize>(1..))]
    prompt_tokens: Option<usize>,

    /// Prompts cut from each text file.
    #[arg(long, value_name = "N", default_value_t = 4, requires = "text", value_parser = whole::<usize>(1..=65536))]
    prompts_per_file: usize,

    /// Tokens to generate for each prompt.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = whole::<usize>(1..=1 << 24))]
    new_tokens: usize,

    /// Sampling temperature; 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.8, value_parser = number(0.0..))]
    temperature: f64,

    /// Seed of the sampling [default: 0].
    #[arg(long, value_parser = whole::<u64>(0..))]
    seed: Option<u64>,

    /// Size of the offloaded run's cache relative to the experts of one token.
    #[arg(long, default_value_t = 2.0, value_parser = number(1.0..))]
    rho: f64,

    /// Policy of the offloaded run, any of docs/policies.md; those that look ahead are given the recorded future.
    #[arg(long, default_value = "lru")]
    policy: PolicyKind,

    /// Where the offloaded run keeps the experts that are not in the cache.
    #[arg(long, value_enum, default_value_t = Store::Host)]
    store: Store,

    /// Device to compute on, and to keep the cache on: cpu, cuda, or cuda:N with the number of a GPU.
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceName,

    /// Hit rate to find the smallest cache for.
    #[arg(long, default_value_t = 0.9, value_parser = number(0.0..=1.0))]
    target: f64,

    /// Folder for the trace and the HTML report.
    #[arg(long, value_name = "DIR", default_value = "target/quickstart")]
    out: PathBuf,

    /// Write all results to this file as JSON.
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path())]
    json: Option<PathBuf>,
}

/// A store of expert weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Store {
    /// Host memory.
    Host,
    /// The checkpoint files, memory-mapped.
    Disk,
}

fn main() -> ExitCode {
    moescope_cli::set_threads(moescope_cli::processors());
    moescope_cli::run(program)
}

fn program() -> Result<()> {
    quickstart(&moescope_cli::parse())
}

fn quickstart(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.temperature > 0.0 || arguments.seed.is_none(),
        "--seed is of the sampling, and --temperature 0 always takes the likeliest token: leave out one of both"
    );
    let checkpoint = open_checkpoint(arguments.model.as_deref())?;
    let files = Files::new().reads_model(checkpoint.folder()).reads_all("a text", &arguments.text);
    let files = files.writes_in("--out", &arguments.out, &["trace.safetensors", "report.html"]);
    files.writes("--json", &arguments.json).check()?;
    let tokenizer = checkpoint.tokenizer()?;
    let (dtype, device) = (DType::F32, arguments.device.open()?);
    let config = checkpoint.config();
    let capacity = slots_of(arguments.rho, &config.geometry())?;
    let room = config.params().max_position_embeddings.saturating_sub(arguments.new_tokens);
    ensure!(
        room > 0,
        "--new-tokens is {}, the model has only {} positions",
        arguments.new_tokens,
        config.params().max_position_embeddings
    );
    let prompt_tokens = arguments.prompt_tokens.unwrap_or(room.min(128));
    ensure!(
        prompt_tokens <= room,
        "--prompt-tokens is {prompt_tokens}, beside --new-tokens {} the model has {room} positions",
        arguments.new_tokens
    );
    let prompts = if arguments.text.is_empty() {
        moescope_cli::built_in_prompts(&tokenizer, room)?
    } else {
        prompts::from_files(&arguments.text, &tokenizer, prompt_tokens, arguments.prompts_per_file)?
    };
    let sampling = match arguments.temperature {
        0.0 => Sampling::Greedy,
        temperature => Sampling::TopP { temperature, top_p: 0.95, seed: arguments.seed.unwrap_or(0) },
    };

    let folder = checkpoint.folder();
    let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();

    moescope_cli::outln!("1. Generate with all experts resident, and record the router");
    let vb = checkpoint.var_builder(dtype, &device)?;
    let resident = Arc::new(moe_model::resident_experts(config, &vb)?);
    let generate =
        |bank, prompts: &[Prompt]| run::generate_all(&name, config, &vb, bank, prompts, sampling, arguments.new_tokens);
    // Once for nothing, so that the first run does not also pay for cold memory.
    generate(resident.clone(), &prompts[..1])?;
    let resident = generate(resident, &prompts)?;
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("cannot create {}", arguments.out.display()))?;
    let trace_file = arguments.out.join("trace.safetensors");
    write_trace(&trace_file, &resident.trace)?;

    moescope_cli::outln!("2. Measure the trace");
    let metrics = measure::metrics(&resident.trace)?;
    let hit_rates = measure::hit_rates(&metrics, config.geometry().top_k());
    let smallest_cache = measure::smallest_caches(&metrics, arguments.target);

    moescope_cli::outln!("3. Generate again with a cache of rho = {}", arguments.rho);
    let mapped = mapped_experts(&checkpoint)?;
    let bank =
        |store: Arc<dyn ExpertStore>| run::offloaded_bank(store, &device, capacity, arguments.policy, &resident.trace);
    let bank = Arc::new(match arguments.store {
        Store::Host => {
            let store = Arc::new(host_experts(&mapped)?);
            let bank = bank(store.clone())?;
            moescope_cli::page_lock(&device, &store)?;
            bank
        }
        Store::Disk => bank(Arc::new(mapped))?,
    });
    let offloaded = generate(bank.clone(), &prompts)?;
    let simulated = run::simulate(&resident.trace, capacity, arguments.policy)?;

    let geometry = config.geometry();
    let report = Report {
        model: name,
        geometry: [geometry.layers(), geometry.experts(), geometry.top_k()],
        metrics,
        hit_rates,
        target: arguments.target,
        smallest_cache,
        generation: Generation::compare(arguments.policy, &resident, &offloaded, &bank, &simulated)?,
        samples: report::samples(&prompts, &resident, &tokenizer)?,
    };
    moescope_cli::outln!("\n{report}");
    let page = arguments.out.join("report.html");
    write_text(&page, &page::render(&report, &resident.trace, &tokenizer)?)?;
    moescope_cli::outln!("trace:  {}\nreport: {}", trace_file.display(), page.display());
    if let Some(path) = &arguments.json {
        write_json(path, &report)?;
        moescope_cli::outln!("JSON:   {}", path.display());
    }
    ensure!(report.generation.exact, "the offloaded run differs from the resident one; see the table above");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_do_nothing_and_values_that_cannot_be_are_refused_before_any_run() {
        for (line, expected) in [
            ("--temperature 0 --seed 3", "--temperature 0 always takes the likeliest token: leave out one of both"),
            (
                "--text Cargo.toml --prompt-tokens 999",
                "--prompt-tokens is 999, beside --new-tokens 128 the model has 128",
            ),
            ("--prompt-tokens 4", "required arguments were not provided:\n  --text <FILE>"),
            ("--new-tokens 256", "--new-tokens is 256, the model has only 256 positions"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().display().to_string();
            let line = ["quickstart", "--out", &out].into_iter().chain(line.split(' '));
            let run = || quickstart(&Arguments::try_parse_from(line)?);
            let error = format!("{:#}", run().unwrap_err());
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
