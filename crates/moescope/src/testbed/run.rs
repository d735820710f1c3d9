//! Runs an experiment.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use moe_testbed::{Experiment, RunConfig, RunFolder, RunState};
use moe_trace::{FolderLock, write_whole};
use moescope_cli::{DeviceName, Files, Table, processors, shown, table, whole};

use super::jobs::Jobs;
use super::{forecast, machine};

/// The experiment's file in the folder of its runs.
pub(crate) const EXPERIMENT: &str = "experiment.toml";

/// Run an experiment, or the rest of an interrupted one.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope testbed run crates/moescope/studies/smoke.toml")]
pub(crate) struct Arguments {
    /// File of the experiment
    experiment: PathBuf,
    /// Folder of its runs, which go on if they are there [default: target/testbed/NAME]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Device to train on: cpu, cuda, or cuda:N with the number of a GPU; only on the CPU does a run make the same bytes
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceName,
    /// Runs at once; changes nothing of the results [default: number of processors]
    #[arg(long, value_name = "N", value_parser = whole::<u16>(1..=65535))]
    jobs: Option<u16>,
    /// Threads of each run; changes nothing of the results
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<u16>(1..=65535))]
    workers: u16,
    /// Check everything and list the runs, but do not begin
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.open()?;
    let folder = match &arguments.out {
        Some(folder) => folder.clone(),
        None => Path::new("target/testbed").join(arguments.experiment.file_stem().unwrap_or_default()),
    };
    Files::new().writes_in("--out", &folder, &[]).check()?;
    let experiment = Experiment::read(&arguments.experiment)?;
    let experiment_text = fs::read(&arguments.experiment)?;
    let prepared = experiment.prepare()?;
    let runs = experiment.runs(&prepared)?;
    if let Some(mix) = runs.first().and_then(|run| run.data.folders.as_ref()) {
        let text = arguments.experiment.parent().unwrap_or(Path::new("")).join(&mix.path);
        Files::new().reads_tree("the text", text).writes_in("--out", &folder, &[EXPERIMENT]).check()?;
    }
    let jobs = arguments.jobs.map_or(processors(), usize::from).min(runs.len());
    let workers = usize::from(arguments.workers);
    for domain in &prepared.tokens.domains {
        let held_out: usize = domain.held_out.iter().map(|document| document.tokens.len()).sum();
        moescope_cli::outln!(
            "{:16} {:8} tokens to train on, {held_out:7} held out",
            shown(&domain.name),
            domain.training.len()
        );
    }
    moescope_cli::outln!("\n{}", plan(&runs, experiment.seeds().len())?);
    check_memory(forecast::bytes(&runs, jobs, workers)?, machine::available_bytes())?;
    if arguments.dry_run {
        return Ok(());
    }

    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let _lock = FolderLock::take(&folder).with_context(|| format!("cannot write to {}", folder.display()))?;
    let create = |config| Ok(RunFolder::create(&folder, config)?);
    let folders: Vec<RunFolder> = runs.into_iter().map(create).collect::<Result<_>>()?;
    let copy = folder.join(EXPERIMENT);
    write_whole(&copy, &experiment_text).with_context(|| format!("cannot write {}", copy.display()))?;
    let count = |state| folders.iter().filter(|run| run.state() == state).count();
    let (complete, resumable) = (count(RunState::Complete), count(RunState::Resumable));
    moescope_cli::outln!("{} of {} runs are complete, {resumable} go on from a checkpoint", complete, folders.len());
    let left = folders.into_iter().filter(|run| run.state() != RunState::Complete);
    let with_work = left.map(|run| {
        let work = forecast::work(run.config())?;
        Ok((run, work))
    });
    let left: Vec<(RunFolder, f64)> = with_work.collect::<Result<_>>()?;
    let failed = if left.is_empty() { Vec::new() } else { Jobs::new(&left, &prepared, &device, jobs, workers)?.run() };
    ensure!(
        failed.is_empty(),
        "{} runs failed, the same command tries them again:\n{}",
        failed.len(),
        failed.join("\n")
    );
    moescope_cli::outln!("complete; compare them with: testbed report {}", folder.display());
    Ok(())
}

/// The points and what they change.
fn plan(runs: &[RunConfig], seeds: usize) -> Result<Table> {
    let mut plan = table(["point", "router", "scope", "experts", "top-k", "width", "parameters", "steps", "tokens"]);
    for run in runs.iter().step_by(seeds) {
        let (config, training) = (run.config()?, &run.training);
        let params = config.params();
        let shared =
            if params.n_shared_experts > 0 { format!(" + {}", params.n_shared_experts) } else { String::new() };
        plan.add_row([
            run.point.clone(),
            run.router(),
            training.balancing.scope.to_string(),
            format!("{}{shared}", params.num_experts),
            params.num_experts_per_tok.to_string(),
            params.intermediate_size.to_string(),
            config.parameters().to_string(),
            training.steps.to_string(),
            (training.steps * (training.batch * training.length) as u64).to_string(),
        ]);
    }
    Ok(plan)
}

/// Refuses what will not fit.
fn check_memory(needed: u64, available: Option<u64>) -> Result<()> {
    let mib = |bytes: u64| bytes >> 20;
    moescope_cli::outln!("at most about {} MiB of memory are needed", mib(needed));
    if let Some(available) = available.filter(|&available| available < needed) {
        bail!("only {} MiB are available; take fewer --jobs or --workers, or smaller models", mib(available));
    }
    Ok(())
}

#[cfg(test)]
impl Arguments {
    /// Runs a file in a folder.
    pub(crate) fn of(experiment: &Path, out: &Path, jobs: u16) -> Arguments {
        let (experiment, out) = (experiment.to_owned(), Some(out.to_owned()));
        Arguments { experiment, out, jobs: Some(jobs), workers: 1, device: DeviceName::Cpu, dry_run: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        check_memory(1 << 30, Some(1 << 30)).unwrap();
        check_memory(1 << 30, None).unwrap();
        let message = check_memory(3 << 30, Some(1 << 30)).unwrap_err().to_string();
        assert_eq!(message, "only 1024 MiB are available; take fewer --jobs or --workers, or smaller models");
    }

    #[test]
    fn a_folder_has_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let _held = FolderLock::take(folder.path()).unwrap();
        let smoke = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/studies/smoke.toml"));
        let error = format!("{:#}", run(&Arguments::of(smoke, folder.path(), 1)).unwrap_err());
        assert!(error.ends_with("is being written by another process"), "{error}");
    }
}
