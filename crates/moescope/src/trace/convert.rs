//! `moescope trace convert`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use moe_trace::{ImportReport, MemoryTrace, Phase, RoutingSource, WarningKind};

use super::input::{Foreign, open};
use super::output::{Output, write};

/// Turn a trace file into shards, shards into a file, or the plain layout into either.
#[derive(Args)]
#[command(after_help = "Example:\n  moescope trace convert trace.safetensors shards --shard-tokens 1000000")]
pub(crate) struct Arguments {
    /// Trace to read.
    input: PathBuf,
    #[command(flatten)]
    output: Output,
    /// Change the phases: the first N tokens of each sequence are prefilled, the others decoded; 0 makes all decoded.
    #[arg(long, value_name = "N")]
    decode_from: Option<usize>,
    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    arguments.output.check(std::slice::from_ref(&arguments.input), &arguments.foreign)?;
    let source = open(&arguments.input, &arguments.foreign)?;
    match arguments.decode_from {
        None => write(source.as_ref(), &arguments.output),
        Some(first) => {
            let changed = decode_from(source.as_ref(), first);
            write(&changed.with_context(|| format!("cannot read {}", arguments.input.display()))?, &arguments.output)
        }
    }
}

/// Copies a trace into memory with other phases; warnings about the old ones are left out.
fn decode_from(source: &dyn RoutingSource, first: usize) -> Result<MemoryTrace> {
    let about_phases = [WarningKind::PHASE_ASSUMED, WarningKind::NO_DECODED_TOKENS];
    let mut trace = MemoryTrace::new(source.geometry().clone())
        .with_domains(source.domains())
        .with_import_report(ImportReport::of_copy(source).without(&about_phases));
    if let Some(model) = source.model() {
        trace = trace.with_model(model);
    }
    let mut longest = 0;
    for index in 0..source.len() {
        let mut sequence = source.sequence(index)?.to_buf();
        longest = longest.max(sequence.phases.len());
        let prefilled = first.min(sequence.phases.len());
        sequence.phases[..prefilled].fill(Phase::Prefill.code());
        sequence.phases[prefilled..].fill(Phase::Decode.code());
        trace.push(sequence)?;
    }
    ensure!(
        first < longest.max(1),
        "--decode-from {first} would leave no decoded token: the longest sequence has {longest} tokens"
    );
    Ok(trace)
}
