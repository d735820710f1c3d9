//! `trace import`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::input::Foreign;
use super::output::{Layout, write_stream};

#[derive(Args)]
pub(crate) struct Arguments {
    /// File or folder of another recorder.
    input: PathBuf,
    /// Trace file to write, or directory of shards with --shard-tokens.
    output: PathBuf,
    #[command(flatten)]
    foreign: Foreign,
    #[command(flatten)]
    layout: Layout,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (importer, mut stream) = arguments
        .foreign
        .open(&arguments.input)
        .with_context(|| format!("cannot import {}", arguments.input.display()))?;
    let geometry = stream.geometry().clone();
    println!(
        "{}: {} layers x {} experts, top-{}, read as {}",
        stream.model().unwrap_or("unnamed model"),
        geometry.layers(),
        geometry.experts(),
        geometry.top_k(),
        importer.name()
    );
    let count = write_stream(stream.as_mut(), &arguments.output, &arguments.layout)
        .with_context(|| format!("cannot import {}", arguments.input.display()))?;
    println!("{}: {count} sequences", arguments.output.display());
    Ok(())
}
