//! Tables.

use std::fmt;

use comfy_table::{CellAlignment, Table as Inner, presets::ASCII_MARKDOWN};

use crate::shown::shown;

/// A table that can be pasted into Markdown. Control characters in its cells are escaped, so that no name breaks a row.
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    is_aligned_right: bool,
}

/// A table with a header.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    Table::new(header)
}

impl Table {
    /// Creates a table with a header.
    pub fn new(header: impl IntoIterator<Item: Into<String>>) -> Table {
        Table { header: cells(header), rows: Vec::new(), is_aligned_right: false }
    }

    /// Adds a row.
    pub fn add_row(&mut self, row: impl IntoIterator<Item: Into<String>>) {
        self.rows.push(cells(row));
    }

    /// Aligns all columns but the first to the right.
    pub fn align_right(&mut self) {
        self.is_aligned_right = true;
    }

    /// Returns the cells of the header.
    pub(crate) fn header(&self) -> &[String] {
        &self.header
    }

    /// Returns the cells of all rows.
    pub(crate) fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }
}

fn cells(row: impl IntoIterator<Item: Into<String>>) -> Vec<String> {
    row.into_iter().map(|cell| shown(&cell.into())).collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Inner::new();
        table.load_style(ASCII_MARKDOWN).set_header(&self.header).add_rows(&self.rows);
        if self.is_aligned_right {
            for column in table.column_iter_mut().skip(1) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_break_rows() {
        let mut table = table(["domain", "tokens"]);
        table.add_row(["two\nlines\u{1b}[31m".to_owned(), "1".to_owned()]);
        assert_eq!(table.to_string().lines().count(), 3);
        assert!(table.to_string().contains("| two\\nlines\\u{1b}[31m | 1 "), "{table}");
    }
}
