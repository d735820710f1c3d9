//! Tables, progress bars, JSON files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use indicatif::{ProgressBar, ProgressStyle};
use moe_trace::ImportReport;
use serde::Serialize;

/// A table with a header, ready to be pasted into Markdown.
pub fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(header);
    table
}

/// A share as per cent with two decimals.
pub fn per_cent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

/// A progress bar over `len` steps of `what`.
pub fn progress_bar(len: usize, what: &str) -> ProgressBar {
    bar(len as u64, &format!("{{bar:40}} {{pos}}/{{len}} {what}, {{eta}} left"))
}

/// A progress bar over `len` bytes of `what`.
pub fn byte_bar(len: u64, what: &str) -> ProgressBar {
    bar(len, &format!("{{bar:40}} {{binary_bytes}}/{{binary_total_bytes}} of {what}, {{eta}} left"))
}

fn bar(len: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style)
}

/// Prints what an import inferred or found odd, one line a warning, on standard error.
pub fn print_warnings(report: &ImportReport) {
    report.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
}

/// Writes a value as pretty JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut file = BufWriter::new(file);
    serde_json::to_writer_pretty(&mut file, value)?;
    file.flush().with_context(|| format!("cannot write {}", path.display()))
}
