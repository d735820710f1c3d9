//! `moescope trace export`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use moe_trace::{Geometry, ImportReport, Notice, RoutingSource, Sequence, exporter, exporters};
use moescope_cli::{Files, no_formula, print_warnings, progress_bar};

use super::input::{Foreign, open};

/// Write a trace in another format.
#[derive(Args)]
#[command(after_help = "Example:\n  moescope trace export trace.safetensors trace.csv --to csv")]
pub(crate) struct Arguments {
    /// Trace to read.
    input: PathBuf,
    /// File to write.
    #[arg(value_parser = moescope_cli::output_path())]
    output: PathBuf,
    /// Format to write [default: by the ending of OUTPUT].
    #[arg(long, value_name = "FORMAT")]
    to: Option<String>,
    /// Put a ' in front of names that a spreadsheet would take for formulas: those that begin with = + - @, a tab or a
    /// carriage return. For csv alone.
    #[arg(long)]
    csv_safe: bool,
    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let ending = arguments.output.extension().map(|ending| ending.to_string_lossy().into_owned());
    let known = || exporters().iter().map(|exporter| exporter.name()).collect::<Vec<_>>().join(", ");
    let name = arguments.to.clone().or(ending).with_context(|| {
        format!("{} has no ending to tell the format by, give --to one of {}", arguments.output.display(), known())
    })?;
    let exporter = exporter(&name).with_context(|| format!("no format `{name}`; give --to one of {}", known()))?;
    ensure!(!arguments.csv_safe || name == "csv", "--csv-safe changes names in CSV files, leave it out for {name}");
    let description = (name == "npz").then(|| arguments.output.with_extension("meta.json"));
    let files =
        Files::new().reads_trace(&arguments.input).reads_all("the file of --config", arguments.foreign.config());
    let files = match &description {
        Some(_) => {
            files.writes_regular("OUTPUT", &arguments.output, "npz has a description beside it, in NAME.meta.json")
        }
        None => files.writes("OUTPUT", &arguments.output),
    };
    files.writes("OUTPUT's description", &description).check()?;
    let source = open(&arguments.input, &arguments.foreign)?;
    let source: &dyn RoutingSource = match arguments.csv_safe {
        true => &WithoutFormulas::new(source),
        false => &*source,
    };
    let bar = progress_bar(source.len(), "sequences");
    exporter
        .write(source, &arguments.output, &|_| bar.inc(1))
        .with_context(|| format!("cannot export {}", arguments.input.display()))?;
    bar.finish_and_clear();
    let warnings = ImportReport::of_copy(source);
    if !exporter.keeps_warnings() && !warnings.is_empty() {
        moescope_cli::errln!("warning: {name} cannot keep how the following was known; jsonl, npz and plain can");
        print_warnings(&warnings);
    }
    moescope_cli::outln!("{}: {} sequences as {name}", arguments.output.display(), source.len());
    Ok(())
}

/// A source whose names no spreadsheet takes for formulas.
struct WithoutFormulas {
    source: Box<dyn RoutingSource>,
    domains: Vec<String>,
}

impl WithoutFormulas {
    fn new(source: Box<dyn RoutingSource>) -> WithoutFormulas {
        let domains = source.domains().iter().map(|name| no_formula(name)).collect();
        WithoutFormulas { source, domains }
    }
}

impl RoutingSource for WithoutFormulas {
    fn geometry(&self) -> &Geometry {
        self.source.geometry()
    }

    fn len(&self) -> usize {
        self.source.len()
    }

    fn sequence(&self, index: usize) -> moe_trace::Result<Sequence<'_>> {
        self.source.sequence(index)
    }

    fn domains(&self) -> &[String] {
        &self.domains
    }

    fn model(&self) -> Option<&str> {
        self.source.model()
    }

    fn import_report(&self) -> &ImportReport {
        self.source.import_report()
    }

    fn notices(&self) -> &[Notice] {
        self.source.notices()
    }
}
