//! Lines of JSON.

use std::io::{BufRead, Read};
use std::path::PathBuf;

use serde::de::DeserializeOwned;

use super::input::{Input, InputReader};
use super::{io, record};
use crate::{Place, Result, TraceError};

/// A file of one JSON object a line.
pub(super) struct JsonLines {
    path: PathBuf,
    file: InputReader,
    line: Vec<u8>,
    number: u64,
}

impl JsonLines {
    /// The longest line.
    const LONGEST: u64 = 16 << 20;

    pub(super) fn open(input: &Input) -> Result<JsonLines> {
        Ok(JsonLines { path: input.path().to_owned(), file: input.reader()?, line: Vec::new(), number: 0 })
    }

    /// Reads the next line that is not blank.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            self.line.clear();
            let mut limited = self.file.by_ref().take(Self::LONGEST);
            let read = limited.read_until(b'\n', &mut self.line).map_err(io(&self.path, "read the file"))?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if read as u64 == Self::LONGEST && self.line.last() != Some(&b'\n') {
                return Err(self.error("line", "longer", &format!("at most {} bytes", Self::LONGEST)));
            }
            let line = self.line.trim_ascii();
            if !line.is_empty() {
                let parsed = serde_json::from_slice(line);
                return parsed.map(Some).map_err(|error| {
                    let column = error.column();
                    self.error("record", &String::from_utf8_lossy(line), &format!("column {column}: {error}"))
                });
            }
        }
    }

    /// The line that was read last.
    pub(super) fn place(&self) -> Place {
        Place::Line(self.number)
    }

    /// The number of the line that was read last.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// An error somewhere in the file.
    pub(super) fn error_at(&self, place: Place, field: &str, value: &str, limit: &str) -> TraceError {
        record(&self.path, place, field, value, limit)
    }

    pub(super) fn error(&self, field: &str, value: &str, limit: &str) -> TraceError {
        self.error_at(self.place(), field, value, limit)
    }
}
