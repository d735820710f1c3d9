//! `trace export`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use moe_examples::progress_bar;
use moe_trace::{exporter, exporters};

use super::input::{Foreign, open};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Trace to read.
    input: PathBuf,
    /// File to write.
    output: PathBuf,
    /// Format to write [default: by the ending of OUTPUT].
    #[arg(long, value_name = "FORMAT")]
    to: Option<String>,
    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let ending = arguments.output.extension().map(|ending| ending.to_string_lossy().into_owned());
    let name = arguments.to.clone().or(ending).unwrap_or_default();
    let exporter = exporter(&name).with_context(|| {
        let known: Vec<&str> = exporters().iter().map(|exporter| exporter.name()).collect();
        format!("no format `{name}`; give --to one of {}", known.join(", "))
    })?;
    let source = open(&arguments.input, &arguments.foreign)?;
    let bar = progress_bar(source.len(), "sequences");
    exporter
        .write(source.as_ref(), &arguments.output, &|_| bar.inc(1))
        .with_context(|| format!("cannot export {}", arguments.input.display()))?;
    bar.finish_and_clear();
    println!("{}: {} sequences as {name}", arguments.output.display(), source.len());
    Ok(())
}
