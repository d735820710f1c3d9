//! The beginning of a file, to tell its format.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::io;
use crate::Result;

/// The beginning of a file; of a directory, the names in it.
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

    /// Reads the beginning of a file, or the names in a directory.
    ///
    /// # Errors
    /// [`TraceError::Io`](crate::TraceError::Io).
    pub fn take(path: &Path) -> Result<Sample> {
        let mut sample = Sample { head: Vec::new(), names: Vec::new() };
        if path.is_dir() {
            for entry in fs::read_dir(path).map_err(io(path, "list the directory"))?.take(Self::NAMES) {
                let name = entry.map_err(io(path, "list the directory"))?.file_name();
                sample.names.push(name.to_string_lossy().into_owned());
            }
            sample.names.sort_unstable();
        } else {
            let file = File::open(path).map_err(io(path, "open the file"))?;
            file.take(Self::BYTES).read_to_end(&mut sample.head).map_err(io(path, "read the file"))?;
        }
        Ok(sample)
    }

    /// The first bytes of the file; empty for a directory.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The names in the directory, sorted; empty for a file.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The first line that is no comment (`#`) and not blank, without its end; `None` if it is not UTF-8.
    pub fn first_line(&self) -> Option<&str> {
        let text = self.head.utf8_chunks().next()?.valid();
        text.lines().map(str::trim_ascii).find(|line| !line.is_empty() && !line.starts_with('#'))
    }

    /// Whether the bytes occur in the head.
    pub(super) fn contains(&self, bytes: &str) -> bool {
        self.head.windows(bytes.len()).any(|window| window == bytes.as_bytes())
    }
}
