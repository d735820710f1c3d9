//! `moescope trace validate`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::Args;
use moe_trace::ShardedTrace;
use moescope_cli::{progress_bar, whole};

use super::input::{Foreign, open};

/// Read a whole trace and report everything that is wrong with it.
#[derive(Args)]
#[command(after_help = "Example:\n  moescope trace validate trace.safetensors")]
pub(crate) struct Arguments {
    /// Trace to read.
    input: PathBuf,
    /// How many errors are shown.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<usize>(0..))]
    show: usize,
    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let source = open(&arguments.input, &arguments.foreign)?;
    let bar = progress_bar(source.len(), "sequences");
    let (mut tokens, mut wrong) = (0usize, 0usize);
    for index in 0..source.len() {
        match source.sequence(index) {
            Ok(sequence) => tokens += sequence.len(),
            Err(error) => {
                wrong += 1;
                if wrong <= arguments.show {
                    bar.suspend(|| moescope_cli::outln!("{:#}", anyhow::Error::from(error)));
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if wrong > 0 {
        bail!("{wrong} of {} sequences are invalid", source.len());
    }
    check_shards(&arguments.input)?;
    moescope_cli::outln!("{}: {} sequences, {tokens} tokens, all valid", arguments.input.display(), source.len());
    Ok(())
}

/// Checks of a directory of shards what reading its sequences does not.
fn check_shards(path: &Path) -> Result<()> {
    // A folder of another recorder has no shards.
    let Ok(trace) = ShardedTrace::open(path) else { return Ok(()) };
    let without = trace.check_digests()?;
    if without > 0 {
        moescope_cli::errln!("note: {}: {without} shards have no digest in the index", path.display());
    }
    let unknown = trace.unknown_shards();
    ensure!(
        unknown.is_empty(),
        "{} shards belong to no entry of the index: {}; put the whole index back, or move them away",
        unknown.len(),
        unknown.join(", ")
    );
    Ok(())
}
