//! The index of a directory of shards.

use std::collections::HashSet;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::{fmt, fs};

use serde::{Deserialize, Serialize};

use crate::files::TEMPORARY;
use crate::{ImportReport, Result, RoutingSource, TraceError, TraceFile, write_whole};

const INDEX: &str = "index.json";

/// The index: which shards exist, and whether the capture ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) complete: bool,
    pub(super) shards: Vec<ShardEntry>,
    #[serde(default, skip_serializing_if = "ImportReport::is_empty")]
    pub(super) import_warnings: ImportReport,
}

/// What the index says of a shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ShardEntry {
    pub(super) file: String,
    pub(super) sequences: usize,
    pub(super) tokens: usize,
    /// CRC-32 of the file in 8 hexadecimal digits; older writers have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) crc32: Option<String>,
}

impl fmt::Display for ShardEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} sequences, {} tokens", self.file, self.sequences, self.tokens)
    }
}

impl ShardEntry {
    /// Describes a shard, its digest left out.
    pub(super) fn of(number: usize, shard: &TraceFile) -> ShardEntry {
        ShardEntry { file: shard_name(number), sequences: shard.len(), tokens: shard.tokens(), crc32: None }
    }

    /// Whether name and sizes are those of another entry.
    pub(super) fn agrees_with(&self, other: &ShardEntry) -> bool {
        (&self.file, self.sequences, self.tokens) == (&other.file, other.sequences, other.tokens)
    }
}

impl Index {
    /// Reads the index of a directory that has these shards.
    pub(super) fn read(directory: &Path, shards: &[String]) -> Result<Index> {
        let path = directory.join(INDEX);
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return match shards.len() {
                    0 => Ok(Index::default()),
                    shards => Err(TraceError::LostIndex { path, shards }),
                };
            }
            Err(source) => return Err(TraceError::Io { path, action: "read the index", source }),
        };
        serde_json::from_slice(&json).map_err(|error| TraceError::Field {
            path,
            field: "index".to_owned(),
            value: "unreadable".to_owned(),
            limit: format!("expected JSON: {error}"),
        })
    }

    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).expect("strings and integers always serialize");
        let path = directory.join(INDEX);
        write_whole(&path, &json).map_err(TraceError::writing(&path))
    }

    /// The shards that the index does not name, nor those that an interruption left without their entry.
    pub(super) fn unknown<'a>(&self, shards: &'a [String]) -> impl Iterator<Item = &'a String> {
        let known = self.shards.len() + usize::from(!self.complete);
        let known: HashSet<String> = (0..known).map(shard_name).collect();
        shards.iter().filter(move |shard| !known.contains(*shard))
    }
}

/// The name of a shard.
pub(super) fn shard_name(number: usize) -> String {
    format!("shard-{number:05}.safetensors")
}

/// Names of all shards in a directory, in order.
pub(super) fn list_shards(directory: &Path) -> Result<Vec<String>> {
    let is_shard = |name: &str| {
        let number = name.strip_prefix("shard-").and_then(|rest| rest.strip_suffix(".safetensors"));
        number.is_some_and(|number| number.len() >= 5 && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    Ok(list(directory)?.into_iter().filter(|name| is_shard(name)).collect())
}

/// Removes what interrupted writers left under temporary names. The directory must be locked.
pub(super) fn remove_temporary_files(directory: &Path) -> Result<()> {
    let is_ours = |name: &str| (name.starts_with("shard-") || name.starts_with(INDEX)) && name.ends_with(TEMPORARY);
    for name in list(directory)?.into_iter().filter(|name| is_ours(name)) {
        let path = directory.join(name);
        fs::remove_file(&path).map_err(|source| TraceError::Io { path, action: "remove the file", source })?;
    }
    Ok(())
}

/// Names in a directory, in order.
fn list(directory: &Path) -> Result<Vec<String>> {
    let io = |source| TraceError::Io { path: directory.to_owned(), action: "list the directory", source };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        names.push(entry.map_err(io)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

/// A digest as the index has it.
pub(super) fn crc32_text(crc32: u32) -> String {
    format!("{crc32:08x}")
}

/// The digest of a file.
pub(super) fn crc32_of(path: &Path) -> Result<String> {
    const CHUNK: usize = 1 << 18;
    let digest = || -> std::io::Result<u32> {
        let mut file = fs::File::open(path)?;
        let (mut hasher, mut chunk) = (crc32fast::Hasher::new(), vec![0; CHUNK]);
        loop {
            match file.read(&mut chunk) {
                Ok(0) => return Ok(hasher.finalize()),
                Ok(count) => hasher.update(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    digest().map(crc32_text).map_err(|source| TraceError::Io { path: path.to_owned(), action: "read the file", source })
}
