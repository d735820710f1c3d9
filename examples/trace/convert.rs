//! `trace convert`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::input::{Foreign, open};
use super::output::{Layout, write};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Trace to read.
    input: PathBuf,
    /// Trace file to write, or directory of shards with --shard-tokens.
    output: PathBuf,
    #[command(flatten)]
    foreign: Foreign,
    #[command(flatten)]
    layout: Layout,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let source = open(&arguments.input, &arguments.foreign)?;
    write(source.as_ref(), &arguments.output, &arguments.layout)
}
