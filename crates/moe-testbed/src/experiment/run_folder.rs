//! One run in a folder of its own: begun, interrupted, resumed, complete.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Device;
use moe_trace::{write_trace, write_whole};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{run_config::RunConfig, run_figures::RunFigures};
use crate::{
    error::{Result, TestbedError},
    measure::{HeldOut, Reading},
    text::Prepared,
    training::{Progress, Trainer},
};

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const VALIDATION: &str = "validation.jsonl";
const CHECKPOINT: &str = "training.safetensors";
const TRACE: &str = "trace.safetensors";
const MODEL: &str = "model";
const FIGURES: &str = "figures.json";
const SECONDS: &str = "seconds.json";

/// Held-out sequences of each domain that a model reads on the way.
const ON_THE_WAY: usize = 4;

/// A run in a folder: `config.toml`; `metrics.jsonl` with a line for every step, `validation.jsonl` with one for every
/// checkpoint and `training.safetensors`, the last of these; when it is complete `model/`, `trace.safetensors` of the
/// held-out text and `figures.json` instead of the checkpoint. All these are functions of the configuration and the text;
/// `seconds.json` says what the run took.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
    config: RunConfig,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// There is no checkpoint.
    New,
    /// There is a checkpoint.
    Resumable,
    /// All is done.
    Complete,
}

/// What a run took, all of its sessions together, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunSeconds {
    /// Training, up to the last checkpoint.
    pub training: f64,
    /// Reading the held-out text and measuring.
    pub measuring: f64,
}

/// A line of `validation.jsonl`: how a model reads a few held-out sequences of each domain.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Steps done.
    pub step: u64,
    /// Cross entropy in nats a token, mean over domains.
    pub loss: f64,
    /// Purity of the routing, mean over layers.
    pub purity: f64,
    /// Normalized mutual information of expert and domain, mean over layers.
    pub nmi: f64,
}

/// What a run reports as it goes.
#[derive(Clone, Copy, Debug)]
pub enum RunEvent<'a> {
    /// A step was done.
    Step(&'a Progress),
    /// A checkpoint is due, and this is how good the model is.
    Validated(&'a ValidationRecord),
}

impl RunFolder {
    /// Creates the folder of a run below that of its experiment, or takes the one that is there.
    ///
    /// # Errors
    /// [`TestbedError::OtherRun`] if the folder is of a run with another configuration; [`TestbedError::Io`].
    pub fn create(experiment: &Path, config: RunConfig) -> Result<RunFolder> {
        let path = experiment.join(config.folder());
        let file = path.join(CONFIG);
        let ours = Table::try_from(&config).map_err(|error| bad_toml(&file, &error))?;
        if file.exists() {
            let text = fs::read_to_string(&file).map_err(TestbedError::io(&file))?;
            let found: Table = text.parse().map_err(|error| bad_toml(&file, &error))?;
            if let Some(difference) = difference(&found, &ours) {
                return Err(TestbedError::OtherRun { path: file, difference });
            }
        } else {
            fs::create_dir_all(&path).map_err(TestbedError::io(&path))?;
            write_whole(&file, ours.to_string().as_bytes()).map_err(TestbedError::io(&file))?;
        }
        Ok(RunFolder { path, config })
    }

    /// Opens the folder of a run.
    ///
    /// # Errors
    /// [`TestbedError::Io`] or [`TestbedError::Toml`] if its configuration cannot be read.
    pub fn open(path: &Path) -> Result<RunFolder> {
        let file = path.join(CONFIG);
        let text = fs::read_to_string(&file).map_err(TestbedError::io(&file))?;
        let config = toml::from_str(&text).map_err(|error| bad_toml(&file, &error))?;
        Ok(RunFolder { path: path.to_owned(), config })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration of the run.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// How far the run is.
    pub fn state(&self) -> RunState {
        if self.path.join(FIGURES).exists() {
            RunState::Complete
        } else if self.path.join(CHECKPOINT).exists() {
            RunState::Resumable
        } else {
            RunState::New
        }
    }

    /// The figures of a complete run.
    ///
    /// # Errors
    /// [`TestbedError::Io`] or [`TestbedError::Json`] if they are missing or broken.
    pub fn figures(&self) -> Result<RunFigures> {
        read_json(&self.path.join(FIGURES))
    }

    /// What the run took so far.
    ///
    /// # Errors
    /// As [`figures`](Self::figures).
    pub fn seconds(&self) -> Result<RunSeconds> {
        let path = self.path.join(SECONDS);
        if path.exists() { read_json(&path) } else { Ok(RunSeconds::default()) }
    }

    /// How good the model was on the way.
    ///
    /// # Errors
    /// As [`figures`](Self::figures).
    pub fn validations(&self) -> Result<Vec<ValidationRecord>> {
        let path = self.path.join(VALIDATION);
        let text = fs::read_to_string(&path).map_err(TestbedError::io(&path))?;
        let record =
            |line| serde_json::from_str(line).map_err(|source| TestbedError::Json { path: path.clone(), source });
        text.lines().map(record).collect()
    }

    /// Does what is left of the run with some threads, and returns its figures; `None` if `observe` breaks it off.
    ///
    /// A run that was broken off, or killed, goes on from its last checkpoint, and ends with the same bytes.
    ///
    /// # Errors
    /// As [`Trainer::new`], [`Trainer::advance`], [`HeldOut::new`], [`RunFigures::measure`]; [`TestbedError::Io`].
    pub fn run(
        &self,
        prepared: &Prepared,
        device: &Device,
        workers: usize,
        mut observe: impl FnMut(RunEvent<'_>) -> ControlFlow<()>,
    ) -> Result<Option<RunFigures>> {
        if self.state() == RunState::Complete {
            return self.figures().map(Some);
        }
        let (config, training, measure) = (self.config.config()?, self.config.training.clone(), &self.config.measure);
        let held_out = HeldOut::new(&prepared.tokens, measure.sequences, training.length)?;
        let few = HeldOut::new(&prepared.tokens, measure.sequences.min(ON_THE_WAY), training.length)?;
        let (checkpoint, steps, every) = (self.path.join(CHECKPOINT), training.steps, self.config.checkpoint_every);
        let trainer = match self.state() {
            RunState::Resumable => Trainer::resume(&config, &prepared.tokens, training, device, &checkpoint)?,
            _ => Trainer::new(&config, &prepared.tokens, training, device)?,
        };
        let mut trainer = trainer.with_workers(workers)?;
        let mut seconds = if trainer.step() > 0 { self.seconds()? } else { RunSeconds::default() };
        let mut metrics = LineFile::until(self.path.join(METRICS), trainer.step())?;
        let mut validation = LineFile::until(self.path.join(VALIDATION), trainer.step())?;
        while trainer.step() < steps {
            let (started, before) = (Instant::now(), seconds.training);
            let until = ((trainer.step() / every + 1) * every).min(steps);
            while trainer.step() < until {
                let progress = trainer.advance()?;
                metrics.append(&progress)?;
                if observe(RunEvent::Step(&progress)).is_break() {
                    return Ok(None);
                }
            }
            let record = ValidationRecord::of(trainer.step(), &few.read(trainer.model(), |_done| {})?)?;
            validation.append(&record)?;
            // Lines without their checkpoint are cut off again; a checkpoint without its lines would be a loss.
            metrics.sync()?;
            validation.sync()?;
            trainer.save(&checkpoint)?;
            seconds.training = before + started.elapsed().as_secs_f64();
            write_json(&self.path.join(SECONDS), &seconds)?;
            if observe(RunEvent::Validated(&record)).is_break() {
                return Ok(None);
            }
        }
        let started = Instant::now();
        trainer.export(&self.path.join(MODEL), &prepared.tokenizer)?;
        let reading = held_out.read(trainer.model(), |_done| {})?;
        write_trace(self.path.join(TRACE), &reading.trace)?;
        let figures = RunFigures::measure(&self.config, &reading)?;
        seconds.measuring = started.elapsed().as_secs_f64();
        write_json(&self.path.join(SECONDS), &seconds)?;
        write_json(&self.path.join(FIGURES), &figures)?;
        fs::remove_file(&checkpoint).map_err(TestbedError::io(&checkpoint))?;
        Ok(Some(figures))
    }
}

impl ValidationRecord {
    fn of(step: u64, reading: &Reading) -> Result<ValidationRecord> {
        let layers = reading.agreement()?;
        let mean = |values: &mut dyn Iterator<Item = f64>, count: usize| values.sum::<f64>() / count as f64;
        Ok(ValidationRecord {
            step,
            loss: mean(&mut reading.losses.iter().copied(), reading.losses.len()),
            purity: mean(&mut layers.iter().map(|layer| layer.router.purity), layers.len()),
            nmi: mean(&mut layers.iter().map(|layer| layer.router.nmi), layers.len()),
        })
    }
}

/// A file with a JSON object a line.
struct LineFile {
    path: PathBuf,
    file: File,
}

/// What every line begins with.
#[derive(Deserialize)]
struct AtStep {
    step: u64,
}

impl LineFile {
    /// Opens a file for more lines, without those behind a step.
    fn until(path: PathBuf, step: u64) -> Result<LineFile> {
        let text = if step > 0 { fs::read_to_string(&path).map_err(TestbedError::io(&path))? } else { String::new() };
        let done = |line: &&str| serde_json::from_str::<AtStep>(line).is_ok_and(|line| line.step <= step);
        let kept: String = text.split_inclusive('\n').take_while(done).collect();
        write_whole(&path, kept.as_bytes()).map_err(TestbedError::io(&path))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(TestbedError::io(&path))?;
        Ok(LineFile { path, file })
    }

    fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(record);
        let line = line.map_err(|source| TestbedError::Json { path: self.path.clone(), source })?;
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(TestbedError::io(&self.path))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(TestbedError::io(&self.path))
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(TestbedError::io(path))?;
    serde_json::from_slice(&bytes).map_err(|source| TestbedError::Json { path: path.to_owned(), source })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value);
    let json = json.map_err(|source| TestbedError::Json { path: path.to_owned(), source })?;
    write_whole(path, format!("{json}\n").as_bytes()).map_err(TestbedError::io(path))
}

fn bad_toml(path: &Path, error: &dyn std::fmt::Display) -> TestbedError {
    TestbedError::Toml { path: path.to_owned(), problem: error.to_string().trim_end().to_owned() }
}

/// The first field in which two tables differ, in words.
fn difference(found: &Table, expected: &Table) -> Option<String> {
    let text = |value: Option<&Value>| value.map_or("missing".to_owned(), Value::to_string);
    expected.keys().chain(found.keys()).find_map(|key| match (found.get(key), expected.get(key)) {
        (Some(Value::Table(found)), Some(Value::Table(expected))) => {
            difference(found, expected).map(|difference| format!("{key}.{difference}"))
        }
        (found, expected) if found != expected => {
            Some(format!("{key} is {}, the experiment says {}", text(found), text(expected)))
        }
        _ => None,
    })
}
