//! Reading shards.

use std::path::Path;

use super::index::{Index, ShardEntry, crc32_of, list_shards, shard_name};
use super::notice::Notice;
use crate::{Geometry, ImportReport, Result, RoutingSource, Sequence, TraceError, TraceFile};

/// The shards of a directory as one source.
#[derive(Debug)]
pub struct ShardedTrace {
    shards: Vec<TraceFile>,
    /// First sequence of each shard, and the number of sequences.
    starts: Vec<usize>,
    index: Index,
    /// Shards that no entry of the index names.
    unknown: Vec<String>,
    notices: Vec<Notice>,
}

impl ShardedTrace {
    /// Opens all complete shards of a directory: those of the index, and one more if the capture was interrupted between
    /// a shard and its entry. A writer may be at work: then these are the shards that it has completed.
    ///
    /// # Errors
    /// [`TraceError::NoShards`]; [`TraceError::LostIndex`] for shards without an index; [`TraceError::Io`] and
    /// [`TraceError::Field`] for a broken index, for a shard that the index names and the directory lacks, and for shards
    /// that differ in geometry, domains or model; what [`TraceFile::open`] finds.
    pub fn open(directory: impl AsRef<Path>) -> Result<ShardedTrace> {
        let directory = directory.as_ref();
        // In this order: of the shards that are there now, a writer enters all but the last before it goes on.
        let listed = list_shards(directory)?;
        let index = Index::read(directory, &listed)?;
        let mut shards = Vec::new();
        for (number, entry) in index.shards.iter().enumerate() {
            let shard = TraceFile::open(directory.join(shard_name(number)))?;
            let found = ShardEntry::of(number, &shard);
            if !found.agrees_with(entry) {
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
        let unknown: Vec<String> = index.unknown(&listed).cloned().collect();
        let mut notices = Vec::new();
        if !index.complete {
            notices.push(Notice::Interrupted { sequences: starts[shards.len()] });
        }
        if !unknown.is_empty() {
            notices.push(Notice::UnknownShards { files: unknown.clone() });
        }
        Ok(ShardedTrace { shards, starts, index, unknown, notices })
    }

    /// Whether the capture was finished rather than interrupted.
    pub fn is_complete(&self) -> bool {
        self.index.complete
    }

    /// Names of the shards that no entry of the index names; they are not read.
    pub fn unknown_shards(&self) -> &[String] {
        &self.unknown
    }

    /// Reads the files of all shards and compares their digests with the index. Returns the number of shards that have no
    /// digest there.
    ///
    /// # Errors
    /// [`TraceError::Digest`] for a file that was changed or replaced; [`TraceError::Io`].
    pub fn check_digests(&self) -> Result<usize> {
        let mut without = self.shards.len() - self.index.shards.len();
        for (shard, entry) in self.shards.iter().zip(&self.index.shards) {
            let Some(expected) = &entry.crc32 else {
                without += 1;
                continue;
            };
            let found = crc32_of(shard.path())?;
            if !expected.eq_ignore_ascii_case(&found) {
                return Err(TraceError::Digest { path: shard.path().to_owned(), found, expected: expected.clone() });
            }
        }
        Ok(without)
    }

    /// The entries of the index, which may lack the last shard.
    pub(super) fn entries(&self) -> &[ShardEntry] {
        &self.index.shards
    }

    pub(super) fn shards(&self) -> &[TraceFile] {
        &self.shards
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
        &self.index.import_warnings
    }

    fn notices(&self) -> &[Notice] {
        &self.notices
    }
}
