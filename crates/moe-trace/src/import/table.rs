//! Rows of a delimited text file with named columns.

use std::io::{BufRead, Read};
use std::path::PathBuf;
use std::str::FromStr;

use super::input::Input;
use super::numbers::whole;
use super::text_rows::TextRows;
use super::{io, record};
use crate::{Place, Result, TraceError};

/// A column, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column(usize);

/// A comma-separated file: comment lines, a row of names, rows of values.
#[derive(Debug)]
pub(super) struct Table {
    path: PathBuf,
    names: Vec<String>,
    rows: TextRows,
    header: Place,
}

impl Table {
    /// Longest comment line that is kept.
    const LONGEST_COMMENT: u64 = 1 << 16;

    /// Opens a file; `comment` is called with each line at the beginning that starts with `#`, and its number.
    pub(super) fn open(input: &Input, mut comment: impl FnMut(u64, &str) -> Result<()>) -> Result<Table> {
        let path = input.path();
        let mut file = input.reader()?;
        let mut skipped = 0;
        while file.fill_buf().map_err(io(path, "read the file"))?.first() == Some(&b'#') {
            let mut line = Vec::new();
            let mut limited = file.by_ref().take(Self::LONGEST_COMMENT);
            limited.read_until(b'\n', &mut line).map_err(io(path, "read the file"))?;
            skipped += 1;
            if limited.limit() == 0 && line.last() != Some(&b'\n') {
                let limit = format!("at most {} bytes", Self::LONGEST_COMMENT);
                return Err(record(path, Place::Line(skipped), "comment", "longer", limit));
            }
            comment(skipped, String::from_utf8_lossy(&line).trim_ascii())?;
        }
        let delimiter = delimiter(file.fill_buf().map_err(io(path, "read the file"))?);
        let mut rows = TextRows::new(path, file, delimiter, skipped);
        rows.next()?;
        let names = (0..rows.len()).filter_map(|index| rows.get(index));
        let names = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        Ok(Table { path: path.to_owned(), names, header: rows.place(), rows })
    }

    /// The column of a name, if there is one.
    pub(super) fn find(&self, name: &str) -> Option<Column> {
        self.names.iter().position(|found| found == name).map(Column)
    }

    /// The column of a name.
    pub(super) fn column(&self, name: &str) -> Result<Column> {
        self.find(name)
            .ok_or_else(|| self.header_error("header", &self.names.join(","), &format!("expected a column {name}")))
    }

    /// Reads the next row; tells whether there was one.
    pub(super) fn next(&mut self) -> Result<bool> {
        let found = self.rows.next()?;
        if found && self.rows.len() != self.names.len() {
            let limit = format!("the header has {}", self.names.len());
            return Err(self.rows.error("number of fields", &self.rows.len().to_string(), &limit));
        }
        Ok(found)
    }

    /// The line of the row.
    pub(super) fn line(&self) -> u64 {
        self.rows.line()
    }

    /// The value of a column in the row, as text.
    pub(super) fn text(&self, column: Column) -> Result<&str> {
        let bytes = self.rows.get(column.0).unwrap_or_default();
        str::from_utf8(bytes).map_err(|_| self.error(column, &String::from_utf8_lossy(bytes), "expected UTF-8"))
    }

    /// The value of a column in the row; `expected` says what is allowed.
    pub(super) fn value<T: FromStr>(&self, column: Column, expected: &str) -> Result<T> {
        let text = self.text(column)?;
        text.parse().map_err(|_| self.error(column, text, expected))
    }

    /// The whole number of a column in the row; `expected` says what is allowed.
    pub(super) fn whole<T: TryFrom<i64>>(&self, column: Column, expected: &str) -> Result<T> {
        let text = self.text(column)?;
        whole(text).and_then(|number| T::try_from(number).ok()).ok_or_else(|| self.error(column, text, expected))
    }

    /// The value of a column in the row, which must be below `limit`.
    pub(super) fn below(&self, column: Column, limit: usize) -> Result<usize> {
        let text = self.text(column)?;
        text.parse()
            .ok()
            .filter(|&value: &usize| value < limit)
            .ok_or_else(|| self.error(column, text, &format!("expected an integer below {limit}")))
    }

    /// All columns with their names.
    pub(super) fn columns(&self) -> impl Iterator<Item = (Column, &str)> {
        self.names.iter().enumerate().map(|(number, name)| (Column(number), name.as_str()))
    }

    /// An error of the row of names.
    pub(super) fn header_error(&self, field: &str, value: &str, limit: &str) -> TraceError {
        self.error_at(self.header.clone(), field, value, limit)
    }

    /// An error somewhere in the file.
    pub(super) fn error_at(&self, place: Place, field: &str, value: &str, limit: &str) -> TraceError {
        record(&self.path, place, field, value, limit)
    }

    /// An error at a value of the row.
    pub(super) fn error(&self, column: Column, value: &str, limit: &str) -> TraceError {
        self.rows.error(&self.names[column.0], value, limit)
    }
}

/// The delimiter that is most frequent in the first line.
pub(super) fn delimiter(text: &[u8]) -> u8 {
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let count = |delimiter: &u8| line.iter().filter(|&byte| byte == delimiter).count();
    b";\t,".iter().copied().max_by_key(count).unwrap_or(b',')
}
