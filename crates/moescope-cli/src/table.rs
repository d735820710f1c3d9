//! Tables.

use std::fmt;

use comfy_table::{CellAlignment, Table as Inner, presets::ASCII_MARKDOWN};

use crate::shown::shown;

/// A table that can be pasted into Markdown. Control characters in its cells are escaped, so that no name breaks a row.
pub struct Table(Inner);

/// A table with a header.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    Table::new(header)
}

impl Table {
    /// Creates a table with a header.
    pub fn new(header: impl IntoIterator<Item: Into<String>>) -> Table {
        let mut table = Inner::new();
        table.load_style(ASCII_MARKDOWN).set_header(cells(header));
        Table(table)
    }

    /// Adds a row.
    pub fn add_row(&mut self, row: impl IntoIterator<Item: Into<String>>) {
        self.0.add_row(cells(row));
    }

    /// Aligns all columns but the first to the right.
    pub fn align_right(&mut self) {
        for column in self.0.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn cells(row: impl IntoIterator<Item: Into<String>>) -> Vec<String> {
    row.into_iter().map(|cell| shown(&cell.into())).collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
