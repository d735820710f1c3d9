//! `trace import`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use moe_examples::{print_warnings, shown};
use moe_trace::SequenceStream;

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
    arguments.output.check(std::slice::from_ref(&arguments.input), &arguments.foreign)?;
    let mut import = match arguments.foreign.open(&arguments.input) {
        Ok(opened) => opened,
        Err(_) if arguments.foreign.from.is_none() && moe_trace::open(&arguments.input).is_ok() => {
            bail!("{} is a trace already; convert copies it", arguments.input.display());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot import {}", arguments.input.display())),
    };
    let model = shown(import.model().unwrap_or("unnamed model"));
    moe_examples::outln!("{model}: {}, read as {}", import.geometry(), import.importer().name());
    let count = write_stream(&mut import, &arguments.output)
        .with_context(|| format!("cannot import {}", arguments.input.display()))?;
    print_warnings(import.report());
    moe_examples::outln!("{}: {count} sequences", arguments.output.path.display());
    Ok(())
}
