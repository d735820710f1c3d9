//! One self-contained HTML page of texts, tables and drawings.

use crate::document::{Block, Document};
use crate::plot::{Drawing, escape};
use crate::provenance::Provenance;

const STYLE: &str = include_str!("page.css");

/// Makes tables sortable. A page is complete without it.
const SCRIPT: &str = include_str!("page.js");

/// A page under construction. It needs no other file, and no script to show its content.
pub struct Page {
    html: String,
    /// The kind of blocks that stand in a row at present, if any do.
    row: Option<Row>,
}

/// Blocks that stand side by side where there is room.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Row {
    Tables,
    Figures,
}

impl Page {
    /// Creates a page with a title and the main result in words.
    pub fn new(title: &str, verdict: &str) -> Page {
        let (title, verdict) = (escape(&crate::shown(title)), escape(&crate::shown(verdict)));
        let html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"/><title>{title}</title>\n\
             <style>\n{STYLE}</style></head>\n<body><h1>{title}</h1>\n<p class=\"verdict\">{verdict}</p>\n"
        );
        Page { html, row: None }
    }

    /// Adds the texts and tables of a report.
    pub fn document(&mut self, document: &Document) {
        for block in document.blocks() {
            match block {
                Block::Text(text) => {
                    let text = crate::shown::shown_lines(text);
                    let paragraphs = text.split("\n\n").map(|text| text.trim_matches('\n'));
                    for paragraph in paragraphs.filter(|paragraph| !paragraph.is_empty()) {
                        self.set_row(None);
                        self.html.push_str(&format!("<p class=\"text\">{}</p>\n", escape(paragraph)));
                    }
                }
                Block::Table(caption, table) => {
                    let header: Vec<&str> = table.header().iter().map(String::as_str).collect();
                    self.set_row(Some(Row::Tables));
                    let heading = escape(&crate::shown(caption));
                    let heading = if heading.is_empty() { heading } else { format!("<h3>{heading}</h3>") };
                    self.html.push_str(&format!("<section>{heading}"));
                    self.push_rows(&header, table.rows().iter().map(Vec::as_slice));
                    self.html.push_str("</section>\n");
                }
            }
        }
    }

    /// Adds the facts about the trace that change what the figures mean; nothing if there are none.
    pub fn provenance(&mut self, trace: &str, provenance: &Provenance) {
        if !provenance.is_empty() {
            self.table(&format!("About {trace}"), ["kind", "what"], provenance.rows().into_iter());
        }
    }

    /// Adds a drawing under a heading.
    pub fn plot(&mut self, heading: &str, drawing: &Drawing) {
        self.set_row(Some(Row::Figures));
        let class = if drawing.is_wide { " class=\"wide\"" } else { "" };
        let heading = escape(&crate::shown(heading));
        self.html.push_str(&format!("<figure{class}><h2>{heading}</h2><div class=\"scroll\">{}</div>", drawing.svg));
        if !drawing.legend.is_empty() {
            let entries: String = drawing.legend.iter().map(|entry| format!("<li>{entry}</li>")).collect();
            self.html.push_str(&format!("<ul class=\"legend\">{entries}</ul>"));
        }
        for note in &drawing.notes {
            self.html.push_str(&format!("<p class=\"note\">{}</p>", escape(note)));
        }
        self.html.push_str("</figure>\n");
    }

    /// Adds a table under a heading.
    pub fn table<const N: usize>(&mut self, heading: &str, header: [&str; N], rows: impl Iterator<Item = [String; N]>) {
        self.set_row(None);
        self.html.push_str(&format!("<h2>{}</h2>", escape(&crate::shown(heading))));
        let rows: Vec<[String; N]> = rows.collect();
        self.push_rows(&header, rows.iter().map(<[String; N]>::as_slice));
    }

    fn push_rows<'a>(&mut self, header: &[&str], rows: impl Iterator<Item = &'a [String]> + Clone) {
        let is_number: Vec<bool> = (0..header.len())
            .map(|column| holds_numbers(rows.clone().filter_map(|row| row.get(column)).map(String::as_str)))
            .collect();
        let row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
            let cell = |(text, &is_number): (&str, &bool)| {
                let class = if is_number { " class=\"number\"" } else { "" };
                format!("<{tag}{class}>{}</{tag}>", escape(text))
            };
            format!("<tr>{}</tr>\n", cells.zip(&is_number).map(cell).collect::<String>())
        };
        let head = row("th", &mut header.iter().copied());
        let body: String = rows.map(|cells| row("td", &mut cells.iter().map(String::as_str))).collect();
        self.html.push_str(&format!(
            "<div class=\"scroll\"><table><thead>{head}</thead><tbody>\n{body}</tbody></table></div>\n"
        ));
    }

    /// Ends a row of blocks of another kind, and begins one of this kind.
    fn set_row(&mut self, row: Option<Row>) {
        if self.row == row {
            return;
        }
        if self.row.is_some() {
            self.html.push_str("</div>\n");
        }
        match row {
            Some(Row::Tables) => self.html.push_str("<div class=\"tables\">\n"),
            Some(Row::Figures) => self.html.push_str("<div class=\"figures\">\n"),
            None => {}
        }
        self.row = row;
    }

    /// Returns the page as HTML.
    pub fn finish(mut self) -> String {
        self.set_row(None);
        self.html.push_str(&format!("<script>\n{SCRIPT}</script></body></html>\n"));
        self.html
    }
}

/// Returns true if every cell is a number or a dash for none, and one is a number.
fn holds_numbers<'a>(mut cells: impl Iterator<Item = &'a str> + Clone) -> bool {
    let is_none = |cell: &str| matches!(cell, "" | "-" | "\u{2013}" | "none");
    let is_number = |cell: &str| cell.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit());
    cells.clone().any(is_number) && cells.all(|cell| is_none(cell) || is_number(cell))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::plot::{Axis, Chart, Point, Series};

    const HOSTILE: &str = "<b>&\"x\u{1b}[31m\u{0}\n";

    /// Parses a page as XML, which every page of ours is.
    fn parsed(html: &str) -> roxmltree::Document<'_> {
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        roxmltree::Document::parse_with_options(html, options).unwrap()
    }

    #[test]
    fn pages_are_well_formed_and_need_no_other_file() {
        let mut document = Document::new();
        writeln!(document, "head {HOSTILE}\n\nmore").unwrap();
        let mut numbers = crate::table(["name", "share %"]);
        numbers.add_row([HOSTILE, "52.10"]);
        numbers.add_row(["b", "-"]);
        document.table("Numbers", numbers);
        let mut page = Page::new(HOSTILE, HOSTILE);
        page.document(&document);
        let mut chart = Chart::new(Axis::linear(HOSTILE), Axis::linear("y"));
        chart.add(Series::marks(HOSTILE, [Point::new(1.0, 1.0).with_label(HOSTILE), Point::new(f64::NAN, 1.0)]));
        page.plot(HOSTILE, &chart.draw());
        page.table("after", ["kind"], [[HOSTILE.to_owned()]].into_iter());
        let html = page.finish();
        let xml = parsed(&html);
        let count = |tag: &str| xml.descendants().filter(|node| node.has_tag_name(tag)).count();
        assert_eq!((count("table"), count("h3"), count("figure"), count("th")), (2, 1, 1, 3));
        assert!(html.contains("<h3>Numbers</h3>") && html.contains("left out: 1."), "{html}");
        assert!(html.contains("<td class=\"number\">52.10</td>") && html.contains("<td class=\"number\">-</td>"));
        assert!(!html.contains("<b>") && !html.contains('\u{1b}') && !html.contains('\u{0}'));
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn columns_of_numbers_are_found() {
        for (cells, expected) in [
            (["1", "-"], true),
            (["12 of 32", "3"], true),
            (["+0.5", "-0.5"], true),
            (["-", "-"], false),
            (["1", "lru"], false),
            (["-x", "1"], false),
        ] {
            assert_eq!(holds_numbers(cells.into_iter()), expected, "{cells:?}");
        }
    }
}
