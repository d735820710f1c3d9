//! Progress bars and the files that programs write.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::builder::{PathBufValueParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};
use moe_trace::{ImportReport, RoutingSource, WholeFile, write_whole};
use serde::Serialize;

/// A share as per cent with two decimals.
pub fn per_cent(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

/// A progress bar over `len` steps of `what`.
pub fn progress_bar(len: usize, what: &str) -> ProgressBar {
    let what = crate::shown(what).replace('{', "{{").replace('}', "}}");
    bar(len as u64, &format!("{{bar:40}} {{pos}}/{{len}} {what}, {{eta}} left"))
}

/// A progress bar over `len` bytes of `what`.
pub fn byte_bar(len: u64, what: &str) -> ProgressBar {
    bar(len, &format!("{{bar:40}} {{binary_bytes}}/{{binary_total_bytes}} of {what}, {{eta}} left"))
}

/// A progress bar over work whose length is not known.
pub fn spinner(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{spinner}} {{pos}} {what}"));
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn bar(len: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style)
}

/// Prints what an import inferred or found odd, one line a warning, on standard error.
pub fn print_warnings(report: &ImportReport) {
    report.warnings().iter().for_each(|warning| crate::errln!("warning: {warning}"));
}

/// Prints what a reader must know of a trace, on standard output: figures of a capture that is not complete are not those
/// of the whole.
pub(crate) fn print_notices(path: &Path, trace: &dyn RoutingSource) {
    trace.notices().iter().for_each(|notice| crate::outln!("note: {}: {notice}", path.display()));
}

/// Parses the path of a file to write, `-` as standard output.
pub fn output_path() -> impl TypedValueParser<Value = PathBuf> {
    let standard = |path: PathBuf| if path == Path::new("-") { PathBuf::from("/dev/stdout") } else { path };
    PathBufValueParser::new().map(standard)
}

/// Writes a text as a whole file.
///
/// # Errors
/// If the file cannot be written.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_bytes(path, text.as_bytes())
}

/// Writes bytes as a whole file.
///
/// # Errors
/// If the file cannot be written.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a value as pretty JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write_text(path, &serde_json::to_string_pretty(value)?)
}

/// Writes rows as comma-separated values below a header, which is there without rows, too.
///
/// # Errors
/// If the file cannot be written.
pub fn write_csv(path: &Path, header: &[&str], rows: impl IntoIterator<Item = impl Serialize>) -> Result<()> {
    let write = || -> Result<()> {
        let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(WholeFile::create(path)?);
        writer.write_record(header)?;
        rows.into_iter().try_for_each(|row| writer.serialize(row))?;
        Ok(writer.into_inner().map_err(csv::IntoInnerError::into_error)?.commit()?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Returns a text that no spreadsheet takes for a formula: one that begins with `=`, `+`, `-`, `@`, a tab or a carriage
/// return gets a `'` in front.
pub fn no_formula(text: &str) -> String {
    let quote = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    format!("{quote}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_has_its_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        write_csv(&path, &["a", "b"], std::iter::empty::<(u8, u8)>()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a,b\n");
        write_csv(&path, &["a", "b"], [("x,y", Some(0.5)), ("", None)]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a,b\n\"x,y\",0.5\n,\n");
    }

    #[test]
    fn formulas_are_neutralised() {
        assert_eq!(["=1+1", "-x", "@a", "prose", ""].map(no_formula), ["'=1+1", "'-x", "'@a", "prose", ""]);
    }
}
