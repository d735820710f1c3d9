//! Whatever can be read as a trace.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use moe_trace::{
    ImportOptions, MemoryTrace, ModelConfig, Opened, Phase, RoutingSource, SequenceStream, Stack, open_or_import,
};

use crate::arguments::whole;
use crate::numbers::{Numbers, distinct_numbers};
use crate::output::{print_notices, print_warnings, spinner};

/// What a foreign file does not say about itself.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Files of other recorders")]
pub struct Foreign {
    /// Format of a foreign file; detected from its content by default.
    #[arg(long, value_name = "FORMAT")]
    pub from: Option<String>,

    /// Experts a layer, where the file does not say [default: the largest id + 1].
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=65535))]
    pub experts: Option<usize>,

    /// Experts a token, where the file does not say.
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=65535))]
    pub top_k: Option<usize>,

    /// The model's config.json: which layers have experts, and how many.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Phase of tokens where the file does not say: prefill or decode.
    #[arg(long, value_name = "PHASE", value_parser = phase)]
    pub token_phase: Option<Phase>,

    /// Stack of layers where the file does not say: decoder or encoder.
    #[arg(long, value_parser = stack)]
    pub stack: Option<Stack>,

    /// Layers of the model to read, where layers are files, like 0..12.
    #[arg(long, value_name = "LIST", value_parser = distinct_numbers)]
    pub model_layers: Option<Numbers>,

    /// Id that marks an empty slot, like 255; can be given several times.
    #[arg(long, value_name = "ID")]
    pub empty_id: Vec<i64>,

    /// The most bytes that what is packed in the file, or comes through a pipe, may have
    /// [default: 100 for each packed one and at least 64 MiB; 4 GiB of a pipe].
    #[arg(long, value_name = "BYTES")]
    pub max_unpacked: Option<u64>,

    /// Refuse a foreign file about which anything has to be inferred: every warning is an error.
    #[arg(long)]
    pub strict: bool,

    /// Read a column from another one of the file, like expert=id; can be given several times.
    #[arg(long, value_name = "COLUMN=NAME", value_parser = column)]
    pub column: Vec<(String, String)>,
}

/// Parses a phase.
///
/// # Errors
/// What is allowed.
pub fn phase(text: &str) -> Result<Phase, String> {
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
    /// The options of an import.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    pub fn options(&self) -> Result<ImportOptions> {
        Ok(ImportOptions {
            experts: self.experts,
            top_k: self.top_k,
            model: None,
            config: self.config.as_ref().map(ModelConfig::read).transpose().context("cannot use --config")?,
            phase: self.token_phase,
            stack: self.stack,
            layers: self.model_layers.clone().map(|layers| layers.0),
            columns: self.column.clone(),
            empty_ids: self.empty_id.clone(),
            format: self.from.clone(),
            max_unpacked: self.max_unpacked,
            strict: self.strict,
        })
    }

    /// Refuses all these options where no trace is read; `instead` says when one is.
    ///
    /// # Errors
    /// The first option that is given.
    pub fn refuse(&self, instead: &str) -> Result<()> {
        let given = [
            ("--from", self.from.is_some()),
            ("--experts", self.experts.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--config", self.config.is_some()),
            ("--token-phase", self.token_phase.is_some()),
            ("--stack", self.stack.is_some()),
            ("--model-layers", self.model_layers.is_some()),
            ("--empty-id", !self.empty_id.is_empty()),
            ("--max-unpacked", self.max_unpacked.is_some()),
            ("--strict", self.strict),
            ("--column", !self.column.is_empty()),
        ];
        match given.into_iter().find(|&(_, is_given)| is_given) {
            Some((option, _)) => bail!("{option} says how a trace is read, {instead}"),
            None => Ok(()),
        }
    }

    /// Opens a trace, or reads a foreign file into memory and prints the warnings.
    ///
    /// # Errors
    /// A file that is neither, or broken; options that do not apply.
    pub fn open(&self, path: &Path) -> Result<Box<dyn RoutingSource>> {
        open_trace(path, &self.options()?)
    }
}

/// Opens a trace, or reads a foreign file into memory and prints the warnings.
///
/// # Errors
/// A file that is neither, or broken; options that do not apply.
pub fn open_trace(path: &Path, options: &ImportOptions) -> Result<Box<dyn RoutingSource>> {
    match open_or_import(path, options)? {
        Opened::Trace(trace) => {
            print_notices(path, &trace);
            let warnings = trace.import_report().warnings().len();
            if warnings > 0 {
                crate::errln!(
                    "note: {}: warnings of its import ({warnings}), shown by `moescope trace info`",
                    path.display()
                );
            }
            Ok(trace)
        }
        Opened::Import(mut import) => {
            let format = import.importer().name();
            let read = || format!("cannot import {} as {format}", path.display());
            let trace = collect(import.as_mut()).with_context(read)?;
            print_warnings(trace.import_report());
            Ok(Box::new(trace))
        }
    }
}

/// Reads a stream into memory.
///
/// # Errors
/// A stream that is broken.
pub fn collect(stream: &mut dyn SequenceStream) -> Result<MemoryTrace> {
    let mut trace = MemoryTrace::new(stream.geometry().clone()).with_domains(stream.domains());
    if let Some(model) = stream.model() {
        trace = trace.with_model(model);
    }
    let bar = spinner("sequences read");
    while let Some(sequence) = stream.next_sequence()? {
        trace.push(sequence)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(trace.with_import_report(stream.report().clone()))
}
