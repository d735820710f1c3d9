//! What can be wrong with a trace.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::Warning;

/// Result of this crate.
pub type Result<T, E = TraceError> = std::result::Result<T, E>;

/// Where in a foreign file something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// A line of a text file, counted from 1.
    Line(u64),
    /// A byte of a binary file, counted from 0.
    Byte(u64),
    /// An array, a member of an archive, or a key of an object.
    Entry(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Byte(byte) => write!(f, "byte {byte}"),
            Place::Entry(name) => f.write_str(name),
        }
    }
}

impl TraceError {
    /// An error of writing to a file.
    pub(crate) fn writing(path: &Path) -> impl Fn(std::io::Error) -> TraceError + use<> {
        let path = path.to_owned();
        move |source| TraceError::Io { path: path.clone(), action: "write the file", source }
    }
}

/// How many there are besides the one that is shown.
fn more(others: usize) -> String {
    if others == 0 { String::new() } else { format!(" ({others} more)") }
}

/// An error of capture, of a trace file, or of a trace in memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// A count of the geometry is out of bounds.
    #[error("{field} is {value}, allowed are {min}..={max}")]
    Geometry {
        /// The count.
        field: &'static str,
        /// Its value.
        value: usize,
        /// Smallest allowed value.
        min: usize,
        /// Largest allowed value.
        max: usize,
    },
    /// A slot names an expert that the layer does not have.
    #[error(
        "sequence {sequence}, token {token}, layer {layer}: expert {expert} is out of range, the layer has {experts}"
    )]
    ExpertOutOfRange {
        /// Index of the sequence.
        sequence: usize,
        /// Token within the sequence.
        token: usize,
        /// MoE layer.
        layer: usize,
        /// The id found.
        expert: usize,
        /// Number of experts.
        experts: usize,
    },
    /// A token names one expert twice in a layer.
    #[error("sequence {sequence}, token {token}, layer {layer}: expert {expert} appears twice")]
    DuplicateExpert {
        /// Index of the sequence.
        sequence: usize,
        /// Token within the sequence.
        token: usize,
        /// MoE layer.
        layer: usize,
        /// The id found twice.
        expert: usize,
    },
    /// A router weight is not a finite number.
    #[error("sequence {sequence}, token {token}, layer {layer}: router weight {value} is not finite")]
    WeightNotFinite {
        /// Index of the sequence.
        sequence: usize,
        /// Token within the sequence.
        token: usize,
        /// MoE layer.
        layer: usize,
        /// The weight found.
        value: f32,
    },
    /// A token has a phase that does not exist.
    #[error("sequence {sequence}, token {token}: phase {code} is neither 0 (prefill) nor 1 (decode)")]
    PhaseCode {
        /// Index of the sequence.
        sequence: usize,
        /// Token within the sequence.
        token: usize,
        /// The code found.
        code: u8,
    },
    /// The text of a token begins or ends where it cannot.
    #[error("sequence {sequence}, token {token}: text offset {offset} is not in {min}..={max}")]
    TextOffset {
        /// Index of the sequence.
        sequence: usize,
        /// Token within the sequence.
        token: usize,
        /// The offset found.
        offset: i64,
        /// The offset before it.
        min: i64,
        /// Bytes of text.
        max: usize,
    },
    /// A sequence was asked for that the source does not have.
    #[error("there is no sequence {index}, the source has {len}")]
    NoSuchSequence {
        /// The index asked for.
        index: usize,
        /// Number of sequences.
        len: usize,
    },
    /// A layer was asked for that the geometry does not have.
    #[error("there is no layer {layer}, the geometry has {layers}")]
    NoSuchLayer {
        /// The layer asked for.
        layer: usize,
        /// Number of layers.
        layers: usize,
    },
    /// Layers were selected of a view that has layers selected.
    #[error("layers are selected twice; select them once, of the whole trace")]
    LayersSelectedTwice,
    /// Nothing was given to concatenate.
    #[error("there is no source to concatenate")]
    NoSources,
    /// A source does not fit those before it.
    #[error("source {index} has {found}, the first has {expected}")]
    SourcesDiffer {
        /// Number of the source.
        index: usize,
        /// Its geometry.
        found: Box<str>,
        /// The geometry of the first.
        expected: Box<str>,
    },
    /// A column of a sequence has the wrong length.
    #[error("sequence column {column} has {len} entries, expected {expected}")]
    ColumnLength {
        /// The column.
        column: &'static str,
        /// Its length.
        len: usize,
        /// The length that the other columns imply.
        expected: usize,
    },
    /// Router events of one token disagree, or a layer is missing.
    #[error("capture of sequence {sequence}, layer {layer}: {problem}")]
    Capture {
        /// The sequence's number in its batch.
        sequence: usize,
        /// MoE layer.
        layer: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// The writer thread behind a queue has ended.
    #[error("the writer thread has ended; its error is told when the sink is finished")]
    WriterEnded,
    /// A domain id without a name.
    #[error("domain {domain} has no name, {names} domains are named")]
    UnknownDomain {
        /// The id.
        domain: usize,
        /// Number of names.
        names: usize,
    },
    /// A domain id that the file format cannot hold.
    #[error("domain {domain} is too large for a trace file, the largest is {max}")]
    DomainLimit {
        /// The id.
        domain: usize,
        /// The largest id.
        max: usize,
    },
    /// A sequence of a file is invalid.
    #[error("{path}: invalid sequence")]
    InvalidSequence {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<TraceError>,
    },
    /// A file is shorter than its header says.
    #[error("{path}: the file has {len} bytes, its header wants {expected}; it was cut, copy it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// The length that its header implies, as far as the header is there.
        expected: u64,
    },
    /// A mapped file has become shorter.
    #[error("{path}: has shrunk to {len} bytes from {expected} since it was opened; read it when its writer is done")]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// Its length when it was opened.
        expected: u64,
    },
    /// The file is not well-formed safetensors.
    #[error("{path}: not a readable safetensors file")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The parser's complaint.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A field of the file has a value that the format does not allow.
    #[error("{path}: {field} is {value}, {limit}")]
    Field {
        /// The file.
        path: PathBuf,
        /// Tensor or metadata key.
        field: String,
        /// What was found.
        value: String,
        /// What is allowed.
        limit: String,
    },
    /// A tensor or metadata key is missing.
    #[error("{path}: {field} is missing")]
    MissingField {
        /// The file.
        path: PathBuf,
        /// Tensor or metadata key.
        field: &'static str,
    },
    /// A record of a foreign file has a value that its format does not allow.
    #[error("{path}, {place}: {field} is {value}, {limit}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        place: Place,
        /// Column, key or array.
        field: Box<str>,
        /// What was found.
        value: Box<str>,
        /// What is allowed.
        limit: Box<str>,
    },
    /// A foreign file is not well-formed.
    #[error("{path}: not a readable {format} file")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The format that was expected.
        format: &'static str,
        /// The parser's complaint, which says where.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What a foreign file says cannot be a trace.
    #[error("{path}: the file does not make a trace")]
    NotImportable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<TraceError>,
    },
    /// No importer knows the content of the file.
    #[error("{path}: no known trace format: {seen}")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// What the file is, and what to do about it.
        seen: String,
    },
    /// There is no importer of a name.
    #[error("no format {name}; known are {known}")]
    NoSuchFormat {
        /// The name.
        name: String,
        /// The names of the importers.
        known: String,
    },
    /// An option of an import has an impossible value.
    #[error("{option} is {value}, {limit}")]
    ImportOption {
        /// The option, by its name in the programs.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        limit: String,
    },
    /// An option of an import says what the file says itself.
    #[error("{path}: {reader} does not use {option}: leave it out")]
    UnusedOption {
        /// The file.
        path: PathBuf,
        /// The option, by its name in the programs.
        option: &'static str,
        /// What reads the file.
        reader: String,
    },
    /// A foreign file has no sequence.
    #[error("{path}: no token of a routed sequence in {bytes} bytes, read as {format}")]
    NothingToImport {
        /// The file.
        path: PathBuf,
        /// The format that it was read as.
        format: &'static str,
        /// Length of the file.
        bytes: u64,
    },
    /// An import has warnings, and they are errors.
    #[error("{warning}{}; warnings are errors here", more(*others))]
    Warned {
        /// The file.
        path: PathBuf,
        /// The first warning.
        warning: Box<Warning>,
        /// Number of other warnings.
        others: usize,
    },
    /// A trace does not fit into a foreign format.
    #[error("{format} cannot hold a trace whose {field} is {value}, {limit}")]
    NotExportable {
        /// The format.
        format: &'static str,
        /// What does not fit.
        field: &'static str,
        /// Its value.
        value: String,
        /// What the format allows.
        limit: &'static str,
    },
    /// A model's name is not known, and is no path.
    #[error("{name:?} is neither a model known by name ({known}), nor the folder of a checkpoint, nor a configuration")]
    UnknownModel {
        /// The name.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// A directory has shards and no index.
    #[error(
        "{path}: the index is missing, and {shards} shards are there; copy the whole directory again, or open the \
         shards one by one"
    )]
    LostIndex {
        /// The index.
        path: PathBuf,
        /// Number of shards.
        shards: usize,
    },
    /// A file has the name of a shard that would be written.
    #[error("{path}: no entry of the index names this shard, and appending would overwrite it; move it away")]
    UnknownShard {
        /// The file.
        path: PathBuf,
    },
    /// A directory has another writer.
    #[error("{path}: is being written by another process")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The digest of a shard is not that of the index.
    #[error("{path}: the CRC-32 is {found}, the index says {expected}; the file was changed or damaged, copy it again")]
    Digest {
        /// The file.
        path: PathBuf,
        /// CRC-32 of the file in hexadecimal digits.
        found: String,
        /// CRC-32 of the index.
        expected: String,
    },
    /// A directory of shards has no complete shard.
    #[error("{path}: no complete shard in this directory")]
    NoShards {
        /// The directory.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("{path}: cannot {action}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}
