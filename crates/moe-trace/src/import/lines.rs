//! Lines of JSON, or one JSON array.

use std::io::{BufRead, Read};
use std::path::PathBuf;

use serde::de::DeserializeOwned;

use super::input::{Input, InputReader};
use super::{io, record};
use crate::{Place, Result, TraceError};

/// The longest line of text, and the longest element of a JSON array.
pub(super) const LONGEST_LINE: u64 = 16 << 20;

/// A file of one JSON object a line, or of one array of objects.
pub(super) struct JsonLines {
    path: PathBuf,
    file: InputReader,
    line: Vec<u8>,
    number: u64,
    /// Elements of the array that were begun; `None` for lines.
    element: Option<u64>,
}

impl JsonLines {
    pub(super) fn open(input: &Input) -> Result<JsonLines> {
        let mut lines = JsonLines {
            path: input.path().to_owned(),
            file: input.reader()?,
            line: Vec::new(),
            number: 0,
            element: None,
        };
        let start = lines.file.fill_buf().map_err(io(&lines.path, "read the file"))?.trim_ascii_start();
        if start.first() == Some(&b'[') {
            (lines.number, lines.element) = (1, Some(0));
            lines.skip_to_value()?;
            lines.file.consume(1);
        }
        Ok(lines)
    }

    /// Reads the next object.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let found = if self.element.is_some() { self.next_element()? } else { self.next_line()? };
        if !found {
            return Ok(None);
        }
        let json = self.line.trim_ascii();
        serde_json::from_slice(json).map(Some).map_err(|error| {
            // The place is the line of the file; of the error itself only what is wrong and the column are of use.
            let (column, error) = (error.column(), error.to_string());
            let what = error.split(" at line ").next().unwrap_or(&error);
            let behind = json.get(column.saturating_sub(2)..).unwrap_or_default();
            let python = [&b"NaN"[..], b"Infinity", b"-Infinity"].into_iter().find(|name| {
                behind.iter().take(16).copied().collect::<Vec<u8>>().windows(name.len()).any(|window| window == *name)
            });
            let hint = python.map_or_else(String::new, |name| {
                format!("; {} of Python is no JSON: write null", String::from_utf8_lossy(name))
            });
            self.error("record", &String::from_utf8_lossy(json), &format!("column {column}: {what}{hint}"))
        })
    }

    /// Reads the next line that is not blank.
    fn next_line(&mut self) -> Result<bool> {
        loop {
            self.line.clear();
            let mut limited = self.file.by_ref().take(LONGEST_LINE);
            let read = limited.read_until(b'\n', &mut self.line).map_err(io(&self.path, "read the file"))?;
            if read == 0 {
                return Ok(false);
            }
            self.number += 1;
            if read as u64 == LONGEST_LINE && self.line.last() != Some(&b'\n') {
                return Err(self.error("line", "longer", &format!("at most {LONGEST_LINE} bytes")));
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    /// Reads the next element of the array.
    fn next_element(&mut self) -> Result<bool> {
        let begun = self.element.unwrap_or(0);
        match self.skip_to_value()? {
            Some(b']') => {
                self.file.consume(1);
                return match self.skip_to_value()? {
                    None => Ok(false),
                    Some(other) => {
                        Err(self.error("array", &char::from(other).to_string(), "expected nothing behind it"))
                    }
                };
            }
            Some(b',') if begun > 0 => {
                self.file.consume(1);
                self.skip_to_value()?;
            }
            Some(_) if begun == 0 => {}
            None => return Err(self.error("array", "cut off", "expected ] at the end")),
            Some(other) => return Err(self.error("array", &char::from(other).to_string(), "expected a comma or ]")),
        }
        self.element = Some(begun + 1);
        self.line.clear();
        let (mut depth, mut in_string, mut escaped) = (0u32, false, false);
        loop {
            let block = self.file.fill_buf().map_err(io(&self.path, "read the file"))?;
            if block.is_empty() {
                return Err(self.error("array", "cut off", "expected ] at the end"));
            }
            let mut used = 0;
            let mut ended = false;
            for &byte in block {
                match byte {
                    _ if in_string => {
                        (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
                    }
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth > 0 => depth -= 1,
                    b',' | b']' if depth == 0 => {
                        ended = true;
                        break;
                    }
                    _ => {}
                }
                used += 1;
            }
            self.line.extend_from_slice(&block[..used]);
            self.number += block[..used].iter().filter(|&&byte| byte == b'\n').count() as u64;
            self.file.consume(used);
            if ended {
                return Ok(true);
            }
            if self.line.len() as u64 >= LONGEST_LINE {
                return Err(self.error("element", "longer", &format!("at most {LONGEST_LINE} bytes")));
            }
        }
    }

    /// Skips white space; gives the byte behind it, which is not read yet.
    fn skip_to_value(&mut self) -> Result<Option<u8>> {
        loop {
            let block = self.file.fill_buf().map_err(io(&self.path, "read the file"))?;
            let Some(&byte) = block.first() else { return Ok(None) };
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.number += u64::from(byte == b'\n');
            self.file.consume(1);
        }
    }

    /// The line or element that was read last.
    pub(super) fn place(&self) -> Place {
        match self.element {
            None => Place::Line(self.number),
            Some(element) => Place::Entry(format!("element {element}, which ends in line {}", self.number)),
        }
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
