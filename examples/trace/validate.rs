//! `trace validate`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use moe_examples::{progress_bar, whole};

use super::input::{Foreign, open};

#[derive(Args)]
pub(crate) struct Arguments {
    /// Trace to read.
    input: PathBuf,
    /// How many errors are shown.
    #[arg(long, default_value_t = 10, value_parser = whole::<usize>(0..))]
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
                    bar.suspend(|| moe_examples::outln!("{:#}", anyhow::Error::from(error)));
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if wrong > 0 {
        bail!("{wrong} of {} sequences are invalid", source.len());
    }
    moe_examples::outln!("{}: {} sequences, {tokens} tokens, all valid", arguments.input.display(), source.len());
    Ok(())
}
