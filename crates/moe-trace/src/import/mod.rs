//! Readers of what other recorders write.

mod any;
mod archive;
mod array;
mod big_moe_on_edge;
mod delimited;
mod diagnosis;
mod fields;
mod granite;
mod holes;
mod id_ranges;
mod ids;
mod input;
mod json_rows;
mod lines;
mod llama_moe_trace;
mod model_layers;
mod npy;
mod numbers;
mod opened;
mod options;
mod paper_outputs;
#[cfg(feature = "parquet")]
mod parquet;
mod passes;
mod pickle;
mod pickle_machine;
mod pickle_numpy;
mod ranks;
mod records;
mod routed_experts;
mod row_scan;
mod row_sequences;
mod rows;
mod sample;
mod sglang;
mod spool;
mod steps;
mod streamlx;
mod table;
mod text_rows;
mod token_table;
mod torch_file;
mod value_columns;
mod vllm_logger;

use std::path::{Path, PathBuf};

#[cfg(feature = "parquet")]
use self::parquet::Parquet;
pub use any::{Opened, open_or_import};
use big_moe_on_edge::BigMoeOnEdge;
use delimited::Delimited;
use granite::Granite;
pub use input::{Input, InputBytes, InputReader};
use json_rows::JsonRows;
use llama_moe_trace::LlamaMoeTrace;
pub use opened::Import;
pub use options::ImportOptions;
use paper_outputs::PaperOutputs;
use routed_experts::RoutedExperts;
pub use sample::Sample;
use sglang::SgLang;
use streamlx::Streamlx;
use vllm_logger::VllmLogger;

use crate::{MemoryTrace, Place, Result, SequenceStream, TraceError};

/// Reads one foreign format.
pub trait Importer: Sync {
    /// A short name without spaces.
    fn name(&self) -> &'static str;

    /// The recorder and the kind of file, in one line.
    fn description(&self) -> &'static str;

    /// The options that the format uses, by their names in the programs, beside those that every format has: `--from`,
    /// `--model`, `--max-unpacked` and `--strict`.
    fn options(&self) -> &'static [&'static str];

    /// Whether a file that begins like `sample` is of this format.
    fn detects(&self, sample: &Sample) -> bool;

    /// Opens a file of this format.
    ///
    /// # Errors
    /// [`TraceError::Io`]; [`TraceError::Record`] and [`TraceError::Malformed`] for a file that breaks its format;
    /// [`TraceError::Geometry`] and [`TraceError::NotImportable`] for an impossible model.
    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>>;
}

/// All importers; where two detect a file, the first counts.
pub fn importers() -> &'static [&'static dyn Importer] {
    &[
        &BigMoeOnEdge,
        &Granite,
        &VllmLogger,
        &Streamlx,
        &SgLang,
        &RoutedExperts,
        &PaperOutputs,
        &LlamaMoeTrace,
        &JsonRows,
        &Delimited,
        #[cfg(feature = "parquet")]
        &Parquet,
    ]
}

/// The importer of a name.
pub fn importer(name: &str) -> Option<&'static dyn Importer> {
    importers().iter().find(|importer| importer.name() == name).copied()
}

/// Finds the importer of a file or directory by its content.
///
/// # Errors
/// [`TraceError::Io`]; [`TraceError::UnknownFormat`].
pub fn detect_importer(path: impl AsRef<Path>) -> Result<&'static dyn Importer> {
    let input = Input::open(path, None)?;
    detect(&input, &Sample::take(&input)?)
}

fn detect(input: &Input, sample: &Sample) -> Result<&'static dyn Importer> {
    let importer = importers().iter().find(|importer| importer.detects(sample)).copied();
    importer.ok_or_else(|| {
        let seen = diagnosis::diagnose(input, sample);
        TraceError::UnknownFormat { path: input.path().to_owned(), seen }
    })
}

/// The names of all importers.
fn names() -> String {
    importers().iter().map(|importer| importer.name()).collect::<Vec<_>>().join(", ")
}

/// Opens a foreign file in whatever format it is, to read it sequence by sequence.
///
/// # Errors
/// As [`detect_importer`] and [`Importer::open`]; [`TraceError::NoSuchFormat`]; [`TraceError::Warned`] if warnings are
/// errors.
pub fn open_import(path: impl AsRef<Path>, options: &ImportOptions) -> Result<Import> {
    let input = Input::open(path, options.max_unpacked)?;
    let sample = Sample::take(&input)?;
    any::import_input(input, &sample, options)
}

/// Reads a foreign file, in whatever format it is, into memory.
///
/// ```
/// use moe_trace::{ImportOptions, RoutingSource, import};
/// let directory = tempfile::tempdir().unwrap();
/// let path = directory.path().join("trace.json");
/// std::fs::write(&path, r#"{"model": "tiny", "num_layers": 1, "num_experts": 4, "top_k": 2,
///     "prompts": {"prose": {"prompt_len": 1, "prefill": [[[3, 1]]], "decode": [[[0, 2]]]}}}"#).unwrap();
/// let trace = import(&path, &ImportOptions::default())?;
/// assert_eq!((trace.len(), trace.sequence(0)?.len(), trace.domains()), (1, 2, &["prose".to_owned()][..]));
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
///
/// # Errors
/// As [`open_import`], and what the sequences break.
pub fn import(path: impl AsRef<Path>, options: &ImportOptions) -> Result<MemoryTrace> {
    let path = path.as_ref();
    open_import(path, options)?.collect().map_err(|error| in_file(path, error))
}

/// Names the file in an error that does not.
fn in_file(path: &Path, error: TraceError) -> TraceError {
    let path = path.to_owned();
    match error {
        TraceError::ExpertOutOfRange { .. }
        | TraceError::DuplicateExpert { .. }
        | TraceError::WeightNotFinite { .. }
        | TraceError::ColumnLength { .. } => TraceError::InvalidSequence { path, source: Box::new(error) },
        TraceError::Geometry { .. } | TraceError::UnknownDomain { .. } => {
            TraceError::NotImportable { path, source: Box::new(error) }
        }
        other => other,
    }
}

/// A [`TraceError::Record`], the value shortened.
fn record(path: &Path, place: Place, field: &str, value: &str, limit: impl Into<Box<str>>) -> TraceError {
    const LONGEST: usize = 80;
    let shown: String = value.chars().take(LONGEST).collect();
    let value = if shown.len() < value.len() { format!("{shown}...") } else { shown };
    TraceError::Record { path: path.to_owned(), place, field: field.into(), value: value.into(), limit: limit.into() }
}

/// Turns an I/O error into a [`TraceError::Io`].
fn io(path: &Path, action: &'static str) -> impl Fn(std::io::Error) -> TraceError {
    let path: PathBuf = path.to_owned();
    move |source| TraceError::Io { path: path.clone(), action, source }
}

/// Reads a pickle and forgets it, for its fuzz target.
#[cfg(fuzzing)]
pub fn read_pickle(bytes: &[u8]) {
    let _ = pickle::Pickle::read(bytes);
}
