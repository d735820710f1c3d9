//! Writing shards.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::index::{Index, ShardEntry, crc32_of, crc32_text, list_shards, remove_temporary_files, shard_name};
use super::trace::ShardedTrace;
use crate::files::sync_directory;
use crate::format::{Columns, Header};
use crate::memory::check_domain;
use crate::{FolderLock, Geometry, ImportReport, Result, RoutingSource, SequenceBuf, TraceError};

/// Writes sequences into a directory, a shard at a time.
///
/// A shard is written when it has reached its number of tokens: under a temporary name, synced, renamed, and then
/// entered in `index.json` in the same way. Whatever interrupts the capture, the directory is a readable trace up to
/// the last complete shard. One writer has a directory at a time; readers may read it meanwhile.
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
    _lock: FolderLock,
}

impl ShardedWriter {
    /// Creates the directory and writes shards of at least `shard_tokens` tokens into it (a sequence is never split).
    ///
    /// # Errors
    /// [`TraceError::Io`]; [`TraceError::Busy`] if another writer has the directory; [`TraceError::Field`] if it holds a
    /// capture already.
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
        let lock = lock(&directory)?;
        let shards = list_shards(&directory)?;
        let index = match shards.first() {
            Some(shard) => Err(shard.clone()),
            None => Index::read(&directory, &shards).map_err(|error| error.to_string()),
        };
        let index = index.and_then(|index| if index.shards.is_empty() { Ok(()) } else { Err("index.json".to_owned()) });
        if let Err(found) = index {
            return Err(TraceError::Field {
                path: directory.clone(),
                field: "directory".to_owned(),
                value: format!("not empty ({found})"),
                limit: "choose a directory without a capture, or append to the capture".to_owned(),
            });
        }
        remove_temporary_files(&directory)?;
        let writer = ShardedWriter {
            header: Header::new(&geometry, domains, model),
            columns: Columns::new(&geometry),
            shard_tokens: shard_tokens.max(1),
            index: Index::default(),
            written: 0,
            _lock: lock,
            directory,
            geometry,
        };
        // From now on a directory without an index has lost it.
        writer.index.write(&writer.directory)?;
        Ok(writer)
    }

    /// Opens a capture to append to it, whether it was finished or interrupted. The geometry, the domains and the model
    /// are those of its shards.
    ///
    /// A shard that an interruption left without its entry in the index is entered; unfinished temporary files are
    /// removed.
    ///
    /// # Errors
    /// As [`ShardedTrace::open`]; [`TraceError::Busy`] if another writer has the directory;
    /// [`TraceError::UnknownShard`] if a shard is there that no entry of the index names; [`TraceError::Io`].
    pub fn append(directory: impl AsRef<Path>, shard_tokens: usize) -> Result<ShardedWriter> {
        let directory = directory.as_ref().to_owned();
        let lock = lock(&directory)?;
        let trace = ShardedTrace::open(&directory)?;
        if let Some(unknown) = trace.unknown_shards().first() {
            return Err(TraceError::UnknownShard { path: directory.join(unknown) });
        }
        remove_temporary_files(&directory)?;
        let mut shards = trace.entries().to_vec();
        for (number, shard) in trace.shards().iter().enumerate().skip(shards.len()) {
            shards.push(ShardEntry { crc32: Some(crc32_of(shard.path())?), ..ShardEntry::of(number, shard) });
        }
        let writer = ShardedWriter {
            geometry: trace.geometry().clone(),
            header: Header::new(trace.geometry(), trace.domains(), trace.model()),
            shard_tokens: shard_tokens.max(1),
            columns: Columns::new(trace.geometry()),
            index: Index { complete: false, shards, import_warnings: trace.import_report().clone() },
            written: trace.len(),
            directory,
            _lock: lock,
        };
        writer.index.write(&writer.directory)?;
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
    /// What [`SequenceBuf::view`] finds; [`TraceError::UnknownDomain`]; [`TraceError::DomainLimit`]; [`TraceError::Io`];
    /// [`TraceError::UnknownShard`] if a file has the name of the next shard.
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
    /// [`TraceError::Io`]; [`TraceError::UnknownShard`].
    pub fn finish(mut self) -> Result<()> {
        if self.columns.sequences() > 0 || self.index.shards.is_empty() {
            self.write_shard()?;
        }
        self.index.complete = true;
        self.index.write(&self.directory)
    }

    fn write_shard(&mut self) -> Result<()> {
        let file = shard_name(self.index.shards.len());
        let path = self.directory.join(&file);
        if path.exists() {
            return Err(TraceError::UnknownShard { path });
        }
        let crc32 = Some(crc32_text(self.columns.write(&path, &self.header)?));
        let (sequences, tokens) = (self.columns.sequences(), self.columns.tokens());
        self.columns = Columns::new(&self.geometry);
        self.index.shards.push(ShardEntry { file, sequences, tokens, crc32 });
        self.written += sequences;
        self.index.write(&self.directory)
    }
}

fn lock(directory: &Path) -> Result<FolderLock> {
    FolderLock::take(directory).map_err(|source| match source.kind() {
        ErrorKind::ResourceBusy => TraceError::Busy { path: directory.to_owned() },
        _ => TraceError::Io { path: directory.to_owned(), action: "lock the directory", source },
    })
}
