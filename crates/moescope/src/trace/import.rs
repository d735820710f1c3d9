//! `moescope trace import`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use moe_trace::{Import, ImportOptions, Opened, SequenceStream, open_or_import};
use moescope_cli::{print_warnings, shown};

use super::input::Foreign;
use super::output::{Output, write_stream};

/// Turn a file of another recorder into a trace.
#[derive(Args)]
#[command(
    after_help = "Example:\n  moescope trace import recording.csv trace.safetensors --experts 64 --token-phase decode"
)]
pub(crate) struct Arguments {
    /// File or folder of another recorder.
    input: PathBuf,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (path, options) = (&arguments.input, arguments.foreign.options()?);
    arguments.output.check(std::slice::from_ref(path), &arguments.foreign)?;
    let cannot = || format!("cannot import {}", path.display());
    let mut import = open(path, &options)?;
    if options.strict && arguments.output.shard_tokens.is_some() {
        // Some warnings come at the end, and no shard may be written before.
        while import.next_sequence().with_context(cannot)?.is_some() {}
        import = import.again().with_context(cannot)?;
    }
    let model = shown(import.model().unwrap_or("unnamed model"));
    moescope_cli::outln!("{model}: {}, read as {}", import.geometry(), import.importer().name());
    let count = write_stream(&mut import, &arguments.output).with_context(cannot)?;
    print_warnings(import.report());
    moescope_cli::outln!("{}: {count} sequences", arguments.output.path.display());
    Ok(())
}

fn open(path: &Path, options: &ImportOptions) -> Result<Import> {
    match open_or_import(path, options).with_context(|| format!("cannot import {}", path.display()))? {
        Opened::Import(import) => Ok(*import),
        Opened::Trace(_) => bail!("{} is a trace already; convert copies it", path.display()),
    }
}
