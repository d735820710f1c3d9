//! Where a trace goes: one file, or shards.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use moe_examples::progress_bar;
use moe_trace::{MemoryTrace, RoutingSource, SequenceStream, ShardedWriter, write_trace};

/// How a trace is written.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Layout {
    /// Write a directory of shards of at least this many tokens instead of one file: for traces larger than memory.
    #[arg(long, value_name = "TOKENS")]
    pub(crate) shard_tokens: Option<usize>,
}

/// Writes a source.
///
/// # Errors
/// A source that is broken, a file that cannot be written.
pub(crate) fn write(source: &dyn RoutingSource, path: &Path, layout: &Layout) -> Result<()> {
    let Some(shard_tokens) = layout.shard_tokens else {
        write_trace(path, source).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}: {} sequences", path.display(), source.len());
        return Ok(());
    };
    let geometry = source.geometry().clone();
    let mut writer = ShardedWriter::create(path, geometry, source.domains(), source.model(), shard_tokens)?;
    append(source, &mut writer)?;
    writer.finish()?;
    println!("{}: {} sequences in shards", path.display(), source.len());
    Ok(())
}

/// Appends all sequences of a source to shards.
///
/// # Errors
/// A source that is broken or does not fit, a file that cannot be written.
pub(crate) fn append(source: &dyn RoutingSource, writer: &mut ShardedWriter) -> Result<()> {
    if source.geometry() != writer.geometry() {
        bail!("the traces differ in their geometry");
    }
    let bar = progress_bar(source.len(), "sequences");
    for index in 0..source.len() {
        writer.push(&source.sequence(index)?.to_buf())?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Writes a stream; into shards sequence by sequence, into a file all at once.
///
/// # Errors
/// A stream that is broken, a file that cannot be written.
pub(crate) fn write_stream(stream: &mut dyn SequenceStream, path: &Path, layout: &Layout) -> Result<usize> {
    let bar = progress_bar(0, "sequences");
    bar.set_style(indicatif::ProgressStyle::default_spinner());
    let count = match layout.shard_tokens {
        None => {
            let mut trace = MemoryTrace::new(stream.geometry().clone()).with_domains(stream.domains());
            if let Some(model) = stream.model() {
                trace = trace.with_model(model);
            }
            while let Some(sequence) = stream.next_sequence()? {
                trace.push(sequence)?;
                bar.inc(1);
            }
            write_trace(path, &trace).with_context(|| format!("cannot write {}", path.display()))?;
            trace.len()
        }
        Some(shard_tokens) => {
            let geometry = stream.geometry().clone();
            let mut writer = ShardedWriter::create(path, geometry, stream.domains(), stream.model(), shard_tokens)?;
            let mut count = 0;
            while let Some(sequence) = stream.next_sequence()? {
                writer.push(&sequence)?;
                count += 1;
                bar.inc(1);
            }
            writer.finish()?;
            count
        }
    };
    bar.finish_and_clear();
    Ok(count)
}
