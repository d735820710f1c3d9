//! A long capture: a directory of complete shards and an index.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use serde::{Deserialize, Serialize};

use crate::files::{TEMPORARY, sync_directory};
use crate::format::{Columns, Header};
use crate::memory::check_domain;
use crate::{Geometry, ImportReport, Result, RoutingSource, Sequence, SequenceBuf, TraceError, TraceFile, write_whole};

const INDEX: &str = "index.json";

/// Names in a directory.
fn list(directory: &Path) -> Result<Vec<String>> {
    let io = |source| TraceError::Io { path: directory.to_owned(), action: "list the directory", source };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether a name is one that a capture uses: the index, a shard, or a temporary name of these.
fn is_ours(name: &str) -> bool {
    let shard = name.strip_prefix("shard-").is_some_and(|rest| rest.contains(".safetensors"));
    shard || name == INDEX || (name.starts_with(INDEX) && name.ends_with(TEMPORARY))
}

fn shard_name(number: usize) -> String {
    format!("shard-{number:05}.safetensors")
}

/// The index: which shards exist, and whether the capture ended.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    complete: bool,
    shards: Vec<ShardEntry>,
    #[serde(default, skip_serializing_if = "ImportReport::is_empty")]
    import_warnings: ImportReport,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ShardEntry {
    file: String,
    sequences: usize,
    tokens: usize,
}

impl fmt::Display for ShardEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} sequences, {} tokens", self.file, self.sequences, self.tokens)
    }
}

impl ShardEntry {
    fn of(number: usize, shard: &TraceFile) -> ShardEntry {
        ShardEntry { file: shard_name(number), sequences: shard.len(), tokens: shard.tokens() }
    }
}

/// Writes sequences into a directory, a shard at a time.
///
/// A shard is written when it has reached its number of tokens: under a temporary name, synced, renamed, and then
/// entered in `index.json` in the same way. Whatever interrupts the capture, the directory is a readable trace up to
/// the last complete shard.
#[derive(Debug)]
pub struct ShardedWriter {
    directory: PathBuf,
    geometry: Geometry,
    header: Header,
    shard_tokens: usize,
    columns: Columns,
    index: Index,
    /// Sequences in the shards of the index.
    written: usize,
}

impl ShardedWriter {
    /// Creates the directory and writes shards of at least `shard_tokens` tokens into it (a sequence is never split).
    ///
    /// # Errors
    /// [`TraceError::Io`]; [`TraceError::Field`] if the directory holds a capture already.
    pub fn create(
        directory: impl AsRef<Path>,
        geometry: Geometry,
        domains: &[String],
        model: Option<&str>,
        shard_tokens: usize,
    ) -> Result<ShardedWriter> {
        let directory = directory.as_ref().to_owned();
        let io = |action| {
            let path = directory.clone();
            move |source| TraceError::Io { path, action, source }
        };
        fs::create_dir_all(&directory).map_err(io("create the directory"))?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_directory(parent).map_err(io("create the directory"))?;
        }
        for name in list(&directory)? {
            if is_ours(&name) && !name.ends_with(TEMPORARY) {
                return Err(TraceError::Field {
                    path: directory.clone(),
                    field: "directory".to_owned(),
                    value: format!("not empty ({name})"),
                    limit: "choose a directory without a capture".to_owned(),
                });
            }
        }
        let header = Header::new(&geometry, domains, model);
        let columns = Columns::new(&geometry);
        let shard_tokens = shard_tokens.max(1);
        Ok(ShardedWriter { directory, geometry, header, shard_tokens, columns, index: Index::default(), written: 0 })
    }

    /// Opens a capture to append to it, whether it was finished or interrupted. The geometry, the domains and the model
    /// are those of its shards.
    ///
    /// A shard that an interruption left without its entry in the index is entered; unfinished temporary files are
    /// removed.
    ///
    /// # Errors
    /// As [`ShardedTrace::open`]; [`TraceError::Io`].
    pub fn append(directory: impl AsRef<Path>, shard_tokens: usize) -> Result<ShardedWriter> {
        let directory = directory.as_ref().to_owned();
        let trace = ShardedTrace::open(&directory)?;
        for entry in list(&directory)? {
            if is_ours(&entry) && entry.ends_with(TEMPORARY) {
                let path = directory.join(entry);
                fs::remove_file(&path).map_err(|source| TraceError::Io { path, action: "remove the file", source })?;
            }
        }
        let shards = trace.shards.iter().enumerate().map(|(number, shard)| ShardEntry::of(number, shard)).collect();
        let writer = ShardedWriter {
            geometry: trace.geometry().clone(),
            header: Header::new(trace.geometry(), trace.domains(), trace.model()),
            shard_tokens: shard_tokens.max(1),
            columns: Columns::new(trace.geometry()),
            index: Index { complete: false, shards, import_warnings: trace.import_report.clone() },
            written: trace.len(),
            directory,
        };
        writer.write_index()?;
        Ok(writer)
    }

    /// The geometry of the sequences.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Appends a sequence, and writes a shard if it is full. If that fails the sequence is kept for another try: do not
    /// push it again.
    ///
    /// A shard has an optional column if all its sequences (that have a token) have it.
    ///
    /// # Errors
    /// What [`SequenceBuf::view`] finds; [`TraceError::UnknownDomain`]; [`TraceError::DomainLimit`]; [`TraceError::Io`].
    pub fn push(&mut self, sequence: &SequenceBuf) -> Result<()> {
        let view = sequence.view(&self.geometry, self.written + self.columns.sequences())?;
        check_domain(view.domain(), &self.header.domains)?;
        self.columns.push(sequence)?;
        if self.columns.tokens() >= self.shard_tokens { self.write_shard() } else { Ok(()) }
    }

    /// Adds what the import of the sequences inferred or found odd, to be written by [`finish`](Self::finish).
    pub fn add_import_report(&mut self, report: &ImportReport) {
        self.index.import_warnings.merge(report);
    }

    /// Writes the last shard and marks the capture as complete.
    ///
    /// # Errors
    /// [`TraceError::Io`].
    pub fn finish(mut self) -> Result<()> {
        if self.columns.sequences() > 0 || self.index.shards.is_empty() {
            self.write_shard()?;
        }
        self.index.complete = true;
        self.write_index()
    }

    fn write_shard(&mut self) -> Result<()> {
        let file = shard_name(self.index.shards.len());
        self.columns.write(&self.directory.join(&file), &self.header)?;
        let (sequences, tokens) = (self.columns.sequences(), self.columns.tokens());
        self.columns = Columns::new(&self.geometry);
        self.index.shards.push(ShardEntry { file, sequences, tokens });
        self.written += sequences;
        self.write_index()
    }

    fn write_index(&self) -> Result<()> {
        let json = serde_json::to_vec_pretty(&self.index).expect("strings and integers always serialize");
        let path = self.directory.join(INDEX);
        write_whole(&path, &json).map_err(TraceError::writing(&path))
    }
}

/// The shards of a directory as one source.
#[derive(Debug)]
pub struct ShardedTrace {
    shards: Vec<TraceFile>,
    /// First sequence of each shard, and the number of sequences.
    starts: Vec<usize>,
    complete: bool,
    import_report: ImportReport,
}

impl ShardedTrace {
    /// Opens all complete shards of a directory: those of the index, and one more if the capture was interrupted between
    /// a shard and its entry.
    ///
    /// # Errors
    /// [`TraceError::NoShards`]; [`TraceError::Io`] and [`TraceError::Field`] for a broken index, for a shard that the index
    /// names and the directory lacks, and for shards that differ in geometry, domains or model; what [`TraceFile::open`]
    /// finds.
    pub fn open(directory: impl AsRef<Path>) -> Result<ShardedTrace> {
        let directory = directory.as_ref();
        let index = read_index(&directory.join(INDEX))?;
        let mut shards = Vec::new();
        for (number, entry) in index.shards.iter().enumerate() {
            let shard = TraceFile::open(directory.join(shard_name(number)))?;
            let found = ShardEntry::of(number, &shard);
            if found != *entry {
                return Err(shard_field(&shard, "shard", &found.to_string(), &format!("the index says {entry}")));
            }
            shards.push(shard);
        }
        let next = directory.join(shard_name(shards.len()));
        if !index.complete && next.exists() {
            shards.push(TraceFile::open(next)?);
        }
        let Some(first) = shards.first() else { return Err(TraceError::NoShards { path: directory.to_owned() }) };
        for shard in &shards {
            let must_agree = [
                ("geometry", shard.geometry().to_string(), first.geometry().to_string()),
                ("domains", format!("{:?}", shard.domains()), format!("{:?}", first.domains())),
                ("model", format!("{:?}", shard.model()), format!("{:?}", first.model())),
            ];
            if let Some((field, found, expected)) = must_agree.iter().find(|(_, found, expected)| found != expected) {
                return Err(shard_field(shard, field, found, &format!("the first shard has {expected}")));
            }
        }
        let mut starts = vec![0];
        for shard in &shards {
            starts.push(starts[starts.len() - 1] + shard.len());
        }
        Ok(ShardedTrace { shards, starts, complete: index.complete, import_report: index.import_warnings })
    }

    /// Whether the capture was finished rather than interrupted.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The shard of a sequence, and the sequence's number in it.
    fn locate(&self, index: usize) -> Result<(&TraceFile, usize)> {
        let len = self.len();
        if index >= len {
            return Err(TraceError::NoSuchSequence { index, len });
        }
        let shard = self.starts.partition_point(|&start| start <= index) - 1;
        Ok((&self.shards[shard], index - self.starts[shard]))
    }
}

fn shard_field(shard: &TraceFile, field: &str, value: &str, limit: &str) -> TraceError {
    let path = shard.path().to_owned();
    TraceError::Field { path, field: field.to_owned(), value: value.to_owned(), limit: limit.to_owned() }
}

fn read_index(path: &Path) -> Result<Index> {
    let json = match fs::read(path) {
        Ok(json) => json,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Index::default()),
        Err(source) => return Err(TraceError::Io { path: path.to_owned(), action: "read the index", source }),
    };
    serde_json::from_slice(&json).map_err(|error| TraceError::Field {
        path: path.to_owned(),
        field: "index".to_owned(),
        value: "unreadable".to_owned(),
        limit: format!("expected JSON: {error}"),
    })
}

impl RoutingSource for ShardedTrace {
    fn geometry(&self) -> &Geometry {
        self.shards[0].geometry()
    }

    fn len(&self) -> usize {
        self.starts[self.shards.len()]
    }

    fn sequence(&self, index: usize) -> Result<Sequence<'_>> {
        let (shard, index) = self.locate(index)?;
        shard.sequence(index)
    }

    fn sequence_len(&self, index: usize) -> Result<usize> {
        let (shard, index) = self.locate(index)?;
        shard.sequence_len(index)
    }

    fn domains(&self) -> &[String] {
        self.shards[0].domains()
    }

    fn model(&self) -> Option<&str> {
        self.shards[0].model()
    }

    fn import_report(&self) -> &ImportReport {
        &self.import_report
    }
}
