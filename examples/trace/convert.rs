//! `trace convert`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::input::{Foreign, open};
use super::output::{Output, write};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Trace to read.
    input: PathBuf,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    arguments.output.check(std::slice::from_ref(&arguments.input), &arguments.foreign)?;
    let source = open(&arguments.input, &arguments.foreign)?;
    write(source.as_ref(), &arguments.output)
}
