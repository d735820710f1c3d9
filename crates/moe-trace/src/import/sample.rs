//! The beginning of a file, to tell its format.

use std::fs;
use std::io::Read;

use serde_json::{Map, Value};

use super::archive::Archive;
use super::{Input, io};
use crate::Result;

/// The beginning of a file; of a directory and of a zip archive, the names in it.
#[derive(Clone, Debug)]
pub struct Sample {
    head: Vec<u8>,
    names: Vec<String>,
}

impl Sample {
    /// How much of a file is looked at.
    pub const BYTES: u64 = 64 << 10;
    /// How many names of a directory are looked at.
    const NAMES: usize = 4096;

    /// Reads the beginning of a file, and the names in a directory or zip archive.
    ///
    /// # Errors
    /// [`TraceError::Io`](crate::TraceError::Io).
    pub fn take(input: &Input) -> Result<Sample> {
        let path = input.path();
        let mut sample = Sample { head: Vec::new(), names: Vec::new() };
        if input.is_folder() {
            for entry in fs::read_dir(path).map_err(io(path, "list the directory"))?.take(Self::NAMES) {
                let name = entry.map_err(io(path, "list the directory"))?.file_name();
                sample.names.push(name.to_string_lossy().into_owned());
            }
            sample.names.sort_unstable();
        } else {
            input.reader()?.take(Self::BYTES).read_to_end(&mut sample.head).map_err(io(path, "read the file"))?;
            if sample.is_zip() {
                // An archive that cannot be read is told by the importer that is named for it.
                sample.names = Archive::open(input).and_then(|archive| archive.names()).unwrap_or_default();
            }
        }
        Ok(sample)
    }

    /// The first bytes of the file; empty for a directory.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The names in the directory or archive, sorted; empty for another file.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The first line that is no comment (`#`) and not blank, without its end; `None` if it is not UTF-8.
    pub fn first_line(&self) -> Option<&str> {
        let text = self.head.utf8_chunks().next()?.valid();
        text.lines().map(str::trim_ascii).find(|line| !line.is_empty() && !line.starts_with('#'))
    }

    /// The first objects of a file of JSON lines or of an array, at most two.
    pub(super) fn objects(&self) -> Vec<Map<String, Value>> {
        let start = self.head.trim_ascii_start();
        let mut rest = start.strip_prefix(b"[").unwrap_or(start);
        let mut objects = Vec::new();
        while objects.len() < 2 {
            let mut values = serde_json::Deserializer::from_slice(rest).into_iter();
            let Some(Ok(object)) = values.next() else { break };
            objects.push(object);
            let behind = rest[values.byte_offset()..].trim_ascii_start();
            rest = behind.strip_prefix(b",").unwrap_or(behind);
        }
        objects
    }

    /// The keys of the first object, as far as the sample has it; also of one that goes on behind it, or breaks off.
    pub(super) fn first_keys(&self) -> Vec<String> {
        let start = self.head.trim_ascii_start();
        let start = start.strip_prefix(b"[").unwrap_or(start).trim_ascii_start();
        let (mut keys, mut depth) = (Vec::new(), 0);
        let (mut text, mut in_string, mut escaped) = (Vec::new(), false, false);
        if start.first() != Some(&b'{') {
            return keys;
        }
        for &byte in start {
            match byte {
                b'"' if in_string && !escaped => in_string = false,
                _ if in_string => {
                    escaped = byte == b'\\' && !escaped;
                    text.push(byte);
                }
                b'"' => {
                    in_string = true;
                    text.clear();
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 1 => break,
                b'}' | b']' => depth -= 1,
                b':' if depth == 1 => keys.push(String::from_utf8_lossy(&text).into_owned()),
                _ => {}
            }
        }
        keys
    }

    /// Whether the file is a zip archive.
    pub(super) fn is_zip(&self) -> bool {
        self.head.starts_with(b"PK\x03\x04")
    }

    /// Whether the directory or archive has a member of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|found| found == name)
    }

    /// Whether this is a trace file, or a folder of shards.
    pub(super) fn is_trace(&self) -> bool {
        let is_shard = |name: &String| name == "index.json" || name.starts_with("shard-");
        let safetensors = self.head.get(8) == Some(&b'{');
        (safetensors && (self.contains("\"moe_trace\"") || self.contains("\"sequence_offsets\"")))
            || (self.head.is_empty() && self.names.iter().any(is_shard))
    }

    /// Whether the file is safetensors and all types in the part of its header that was read are among `dtypes`.
    pub(super) fn has_safetensors_of(&self, dtypes: &[&str]) -> bool {
        let Some(header) = self.head.get(8..).filter(|header| header.starts_with(b"{")) else { return false };
        let header = String::from_utf8_lossy(header);
        let mut found =
            header.split("\"dtype\":\"").skip(1).map(|rest| rest.split('"').next().unwrap_or_default()).peekable();
        found.peek().is_some() && found.all(|dtype| dtypes.contains(&dtype))
    }

    /// Whether the bytes occur in the head.
    pub(super) fn contains(&self, bytes: &str) -> bool {
        self.head.windows(bytes.len()).any(|window| window == bytes.as_bytes())
    }
}
