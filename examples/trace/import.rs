//! `trace import`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::input::Foreign;
use super::output::{Output, write_stream};

#[derive(Args)]
pub(crate) struct Arguments {
    /// File or folder of another recorder.
    input: PathBuf,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (importer, mut stream) = arguments
        .foreign
        .open(&arguments.input)
        .with_context(|| format!("cannot import {}", arguments.input.display()))?;
    let geometry = stream.geometry().clone();
    println!("{}: {geometry}, read as {}", stream.model().unwrap_or("unnamed model"), importer.name());
    let count = write_stream(stream.as_mut(), &arguments.output)
        .with_context(|| format!("cannot import {}", arguments.input.display()))?;
    println!("{}: {count} sequences", arguments.output.path.display());
    Ok(())
}
