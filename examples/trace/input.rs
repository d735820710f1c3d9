//! Whatever can be read as a trace.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use moe_examples::{Numbers, distinct_numbers, print_warnings, whole};
use moe_trace::{Import, ImportOptions, ModelConfig, Phase, RoutingSource, Stack, detect_importer, open_import};

use super::output::collect;

/// What a foreign file does not say about itself.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Foreign {
    /// Format of a foreign file; detected from its content by default.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) from: Option<String>,

    /// Experts a layer, where the file does not say [default: the largest id + 1].
    #[arg(long, value_parser = whole::<usize>(1..=65535))]
    pub(crate) experts: Option<usize>,

    /// Experts a token, where the file does not say.
    #[arg(long, value_parser = whole::<usize>(1..=65535))]
    pub(crate) top_k: Option<usize>,

    /// The model's name.
    #[arg(long)]
    pub(crate) model: Option<String>,

    /// The model's config.json: which layers have experts, and how many.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Phase of tokens where the file does not say: prefill or decode.
    #[arg(long, value_name = "PHASE", value_parser = phase)]
    pub(crate) token_phase: Option<Phase>,

    /// Stack of layers where the file does not say: decoder or encoder.
    #[arg(long, value_parser = stack)]
    pub(crate) stack: Option<Stack>,

    /// Layers of the model to read, where layers are files, like 0..12.
    #[arg(long, value_name = "LIST", value_parser = distinct_numbers)]
    pub(crate) model_layers: Option<Numbers>,

    /// Id that marks an empty slot, like 255; can be given several times.
    #[arg(long, value_name = "ID")]
    pub(crate) empty_id: Vec<i64>,

    /// Refuse a foreign file about which anything has to be inferred: every warning is an error.
    #[arg(long)]
    pub(crate) strict: bool,

    /// Read a column from another one of the file, like expert=id; can be given several times.
    #[arg(long, value_name = "COLUMN=NAME", value_parser = column)]
    pub(crate) column: Vec<(String, String)>,
}

/// Parses a phase.
///
/// # Errors
/// What is allowed.
pub(crate) fn phase(text: &str) -> Result<Phase, String> {
    Phase::ALL.into_iter().find(|phase| phase.name() == text).ok_or_else(|| "write prefill or decode".to_owned())
}

fn stack(text: &str) -> Result<Stack, String> {
    match text {
        "decoder" => Ok(Stack::Decoder),
        "encoder" => Ok(Stack::Encoder),
        _ => Err("write decoder or encoder".to_owned()),
    }
}

fn column(text: &str) -> Result<(String, String), String> {
    let (column, name) = text.split_once('=').ok_or("write COLUMN=NAME, like expert=id")?;
    Ok((column.to_owned(), name.to_owned()))
}

impl Foreign {
    /// Opens a foreign file to read it sequence by sequence.
    ///
    /// # Errors
    /// A format that is unknown or broken, options that do not fit.
    pub(crate) fn open(&self, path: &Path) -> Result<Import> {
        let config = self.config.as_ref().map(ModelConfig::read).transpose().context("cannot use --config")?;
        let options = ImportOptions {
            experts: self.experts,
            top_k: self.top_k,
            model: self.model.clone(),
            config,
            phase: self.token_phase,
            stack: self.stack,
            layers: self.model_layers.clone().map(|layers| layers.0),
            empty_ids: self.empty_id.clone(),
            format: self.from.clone(),
            strict: self.strict,
            columns: self.column.clone(),
        };
        Ok(open_import(path, &options)?)
    }
}

/// Opens a trace, or reads a foreign file into memory.
///
/// # Errors
/// A file that is neither, or broken.
pub(crate) fn open(path: &Path, foreign: &Foreign) -> Result<Box<dyn RoutingSource>> {
    if !path.exists() {
        bail!("{} does not exist", path.display());
    }
    let as_trace = if foreign.from.is_none() { Some(moe_trace::open(path)) } else { None };
    match as_trace {
        Some(Ok(trace)) => Ok(trace),
        Some(Err(error)) if detect_importer(path).is_err() => {
            Err(error).with_context(|| format!("{} is no trace, and of no format that can be imported", path.display()))
        }
        _ => {
            let mut import = foreign.open(path)?;
            let format = import.importer().name();
            let read = || format!("cannot import {} as {format}", path.display());
            let trace = collect(&mut import).with_context(read)?;
            print_warnings(trace.import_report());
            Ok(Box::new(trace))
        }
    }
}
