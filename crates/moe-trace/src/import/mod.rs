//! Readers of what other recorders write.

mod big_moe_on_edge;
mod granite;
mod options;
mod sample;
mod table;
mod token_table;

use std::path::{Path, PathBuf};

use big_moe_on_edge::BigMoeOnEdge;
use granite::Granite;
pub use options::ImportOptions;
pub use sample::Sample;

use crate::{MemoryTrace, Place, Result, SequenceStream, TraceError};

/// Reads one foreign format.
pub trait Importer: Sync {
    /// A short name without spaces.
    fn name(&self) -> &'static str;

    /// The recorder and the kind of file, in one line.
    fn description(&self) -> &'static str;

    /// Whether a file that begins like `sample` is of this format.
    fn detects(&self, sample: &Sample) -> bool;

    /// Opens a file of this format.
    ///
    /// # Errors
    /// [`TraceError::Io`]; [`TraceError::Record`] and [`TraceError::Malformed`] for a file that breaks its format;
    /// [`TraceError::Geometry`] for an impossible model.
    fn open(&self, path: &Path, options: &ImportOptions) -> Result<Box<dyn SequenceStream>>;
}

/// All importers; where two detect a file, the first counts.
pub fn importers() -> &'static [&'static dyn Importer] {
    &[&BigMoeOnEdge, &Granite]
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
    let path = path.as_ref();
    let sample = Sample::take(path)?;
    importers().iter().find(|importer| importer.detects(&sample)).copied().ok_or_else(|| {
        let known = importers().iter().map(|importer| importer.name()).collect::<Vec<_>>().join(", ");
        TraceError::UnknownFormat { path: path.to_owned(), known }
    })
}

/// Opens a foreign file in whatever format it is, to read it sequence by sequence.
///
/// # Errors
/// As [`detect_importer`] and [`Importer::open`].
pub fn open_import(path: impl AsRef<Path>, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
    let path = path.as_ref();
    detect_importer(path)?.open(path, options)
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
    open_import(path, options)?.collect().map_err(|error| match error {
        TraceError::ExpertOutOfRange { .. }
        | TraceError::DuplicateExpert { .. }
        | TraceError::WeightNotFinite { .. } => {
            TraceError::InvalidSequence { path: path.to_owned(), source: Box::new(error) }
        }
        other => other,
    })
}

/// A [`TraceError::Record`], the value shortened.
fn record(path: &Path, place: Place, field: &str, value: &str, limit: impl Into<String>) -> TraceError {
    const LONGEST: usize = 80;
    let shown: String = value.chars().take(LONGEST).collect();
    let value = if shown.len() < value.len() { format!("{shown}...") } else { shown };
    TraceError::Record { path: path.to_owned(), place, field: field.to_owned(), value, limit: limit.into() }
}

/// Turns an I/O error into a [`TraceError::Io`].
fn io(path: &Path, action: &'static str) -> impl Fn(std::io::Error) -> TraceError {
    let path: PathBuf = path.to_owned();
    move |source| TraceError::Io { path: path.clone(), action, source }
}
