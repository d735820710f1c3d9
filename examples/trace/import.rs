//! `trace import`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
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
    let (importer, mut stream) = match arguments.foreign.open(&arguments.input) {
        Ok(opened) => opened,
        Err(_) if arguments.foreign.from.is_none() && moe_trace::open(&arguments.input).is_ok() => {
            bail!("{} is a trace already; convert copies it", arguments.input.display());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot import {}", arguments.input.display())),
    };
    let geometry = stream.geometry().clone();
    println!("{}: {geometry}, read as {}", stream.model().unwrap_or("unnamed model"), importer.name());
    let count = write_stream(stream.as_mut(), &arguments.output)
        .with_context(|| format!("cannot import {}", arguments.input.display()))?;
    println!("{}: {count} sequences", arguments.output.path.display());
    Ok(())
}
