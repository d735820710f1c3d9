//! Reports of text and tables.

use std::fmt;

use crate::table::Table;

/// A report of texts and tables, which prints as text and which a page shows with real tables.
#[derive(Default)]
pub struct Document {
    blocks: Vec<Block>,
}

/// A part of a document.
pub(crate) enum Block {
    /// Lines of text.
    Text(String),
    /// A table with its caption, which may be empty.
    Table(String, Table),
}

impl Document {
    /// Creates an empty document. Text is added with `write!`.
    pub fn new() -> Document {
        Document::default()
    }

    /// Adds a table below its caption. In print, the last row has no line end, and an empty caption has no line.
    pub fn table(&mut self, caption: impl Into<String>, table: Table) {
        self.blocks.push(Block::Table(caption.into(), table));
    }

    /// Returns the texts and tables in their order.
    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }
}

impl fmt::Write for Document {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self.blocks.last_mut() {
            Some(Block::Text(last)) => last.push_str(text),
            _ => self.blocks.push(Block::Text(text.to_owned())),
        }
        Ok(())
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.blocks.iter().try_for_each(|block| match block {
            Block::Text(text) => f.write_str(text),
            Block::Table(caption, table) if caption.is_empty() => table.fmt(f),
            Block::Table(caption, table) => write!(f, "{caption}\n{table}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    fn texts_and_tables_print_in_their_order() {
        let mut document = Document::new();
        write!(document, "one {}", 1).unwrap();
        writeln!(document, " two").unwrap();
        let mut table = crate::table(["a"]);
        table.add_row(["b"]);
        let shown = table.to_string();
        document.table("caption", table);
        write!(document, "\nend").unwrap();
        document.table("", crate::table(["b"]));
        let last = crate::table(["b"]);
        assert_eq!(document.to_string(), format!("one 1 two\ncaption\n{shown}\nend{last}"));
        assert_eq!(document.blocks().len(), 4);
    }
}
