//! Rows of delimited text.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::input::InputReader;
use super::lines::LONGEST_LINE;
use super::{io, record};
use crate::{Place, Result, TraceError};

/// Splits text into rows of fields, as RFC 4180 has it: a field that begins with a quote ends with one, and has two for one.
///
/// Blank rows and rows that begin with `#` are left out, white space around a field too. A row has a limit of bytes, so that
/// memory does not grow with a file without ends of lines or with a quote that is never closed.
#[derive(Debug)]
pub(super) struct TextRows {
    path: PathBuf,
    reader: InputReader,
    delimiter: u8,
    /// Line that is being read, counted from 1.
    reading: u64,
    /// Line where the row that was read last begins.
    line: u64,
    /// The fields of the row, one after the other, and the end of each.
    text: Vec<u8>,
    ends: Vec<usize>,
}

/// What the next byte means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    RowStart,
    Comment,
    FieldStart,
    Plain,
    Quoted,
    /// After a quote in a quoted field: its end, or the first of two.
    Quote,
}

impl TextRows {
    /// Reads rows from where `reader` stands, behind `skipped` lines.
    pub(super) fn new(path: &Path, reader: InputReader, delimiter: u8, skipped: u64) -> TextRows {
        TextRows {
            path: path.to_owned(),
            reader,
            delimiter,
            reading: skipped + 1,
            line: skipped + 1,
            text: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Reads the next row; tells whether there was one.
    pub(super) fn next(&mut self) -> Result<bool> {
        self.text.clear();
        self.ends.clear();
        self.line = self.reading;
        let mut state = State::RowStart;
        let mut bytes = 0;
        loop {
            let block = self.reader.fill_buf().map_err(io(&self.path, "read the file"))?;
            if block.is_empty() {
                return match state {
                    State::RowStart | State::Comment => Ok(false),
                    State::Quoted => {
                        Err(self.error("quote", "not closed", "expected a second one before the end of the file"))
                    }
                    _ => {
                        self.ends.push(self.text.len());
                        Ok(true)
                    }
                };
            }
            let (len, mut used, mut ended) = (block.len(), 0, false);
            for &byte in block {
                used += 1;
                self.reading += u64::from(byte == b'\n');
                let is_end = matches!(byte, b'\n' | b'\r');
                match state {
                    State::Quoted if byte == b'"' => state = State::Quote,
                    State::Quoted => self.text.push(byte),
                    State::Comment if is_end => state = State::RowStart,
                    State::Comment => {}
                    State::RowStart if is_end => self.line = self.reading,
                    State::RowStart if byte == b'#' => state = State::Comment,
                    State::RowStart | State::FieldStart if byte == b'"' => state = State::Quoted,
                    State::Quote if byte == b'"' => {
                        self.text.push(byte);
                        state = State::Quoted;
                    }
                    _ if is_end => {
                        self.ends.push(self.text.len());
                        ended = true;
                        break;
                    }
                    _ if byte == self.delimiter => {
                        self.ends.push(self.text.len());
                        state = State::FieldStart;
                    }
                    _ => {
                        self.text.push(byte);
                        state = State::Plain;
                    }
                }
                if state == State::RowStart {
                    self.line = self.reading;
                }
            }
            debug_assert!(used <= len);
            self.reader.consume(used);
            if ended {
                return Ok(true);
            }
            bytes = if state == State::RowStart { 0 } else { bytes + used as u64 };
            if bytes >= LONGEST_LINE {
                let open = if state == State::Quoted { "; a quote is not closed" } else { "" };
                return Err(self.error("line", "longer", &format!("at most {LONGEST_LINE} bytes{open}")));
            }
        }
    }

    /// Number of fields of the row.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// A field of the row, without white space around it.
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(self.text[start..end].trim_ascii())
    }

    /// The line where the row begins.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The place of the row.
    pub(super) fn place(&self) -> Place {
        Place::Line(self.line)
    }

    /// An error of the row.
    pub(super) fn error(&self, field: &str, value: &str, limit: &str) -> TraceError {
        record(&self.path, self.place(), field, value, limit)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Input;

    /// Rows of a text with the line of each, or the error.
    fn rows(text: &[u8]) -> std::result::Result<Vec<(u64, Vec<String>)>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, text).unwrap();
        let mut rows = TextRows::new(Path::new("f"), Input::open(&path, None).unwrap().reader().unwrap(), b',', 0);
        let mut all = Vec::new();
        while rows.next().map_err(|error| error.to_string())? {
            let field = |index| String::from_utf8_lossy(rows.get(index).unwrap()).into_owned();
            all.push((rows.line, (0..rows.len()).map(field).collect()));
        }
        Ok(all)
    }

    #[test]
    fn quotes_blank_rows_and_comments_are_understood() {
        let text = b"a, b ,\"c\"\"d\"\r\n\n# no \"row\nx\"y,\"1\n2\",\n\"\"\n";
        let row = |line, fields: &[&str]| (line, fields.iter().map(|&field| field.to_owned()).collect());
        let expected = vec![row(1, &["a", "b", "c\"d"]), row(4, &["x\"y", "1\n2", ""]), row(6, &[""])];
        assert_eq!(rows(text), Ok(expected));
        assert_eq!(rows(b"a,b"), Ok(vec![row(1, &["a", "b"])]));
        assert_eq!(rows(b"# all\n"), Ok(vec![]));
        assert_eq!(
            rows(b"a\nb,\"c\n"),
            Err("f, line 2: quote is not closed, expected a second one before the end of the file".to_owned())
        );
    }

    #[test]
    fn rows_have_a_limit() {
        let mut text = vec![b'0'; 17 << 20];
        assert_eq!(rows(&text), Err("f, line 1: line is longer, at most 16777216 bytes".to_owned()));
        text[..4].copy_from_slice(b"a\n,\"");
        text.iter_mut().step_by(100).skip(1).for_each(|byte| *byte = b'\n');
        assert_eq!(
            rows(&text),
            Err("f, line 2: line is longer, at most 16777216 bytes; a quote is not closed".to_owned())
        );
    }

    proptest! {
        /// Rows are those of the crate `csv`, which closes open quotes at the end without a word.
        #[test]
        fn rows_are_those_of_another_reader(text in "[ab\", \n#]{0,40}\n") {
            let mut reader = csv::ReaderBuilder::new();
            reader.has_headers(false).flexible(true).trim(csv::Trim::All).comment(Some(b'#'));
            let theirs: Vec<Vec<String>> = reader
                .from_reader(text.as_bytes())
                .records()
                .map(|row| row.unwrap().iter().map(str::to_owned).collect())
                .collect();
            if let Ok(ours) = rows(text.as_bytes()) {
                prop_assert_eq!(ours.into_iter().map(|(_, row)| row).collect::<Vec<_>>(), theirs);
            }
        }
    }
}
