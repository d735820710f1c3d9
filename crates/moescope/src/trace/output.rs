//! Where a trace goes: one file, or shards.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::ProgressBar;
use moe_trace::{Geometry, ImportReport, Notice, RoutingSource, Sequence, SequenceStream, ShardedWriter, write_trace};
use moescope_cli::{Files, collect, progress_bar, spinner, whole};

use super::input::Foreign;

/// Where a trace is written, and how.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Output {
    /// Trace file to write, or directory of shards with --shard-tokens.
    #[arg(value_name = "OUTPUT", value_parser = moescope_cli::output_path())]
    pub(crate) path: PathBuf,

    /// Write a directory of shards of at least this many tokens instead of one file: for traces larger than memory.
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>(1..))]
    pub(crate) shard_tokens: Option<usize>,
}

impl Output {
    /// Checks that the output can be written and destroys none of the inputs. A trace may replace itself: it is read
    /// until the new one is complete.
    ///
    /// # Errors
    /// As [`Files::check`].
    pub(crate) fn check(&self, inputs: &[PathBuf], foreign: &Foreign) -> Result<()> {
        let files = Files::new().reads_all("the file of --config", foreign.config());
        match self.shard_tokens {
            Some(_) => files.writes_in("OUTPUT", &self.path, &[]),
            None => {
                let recordings =
                    inputs.iter().filter(|input| input.is_file() && moe_trace::TraceFile::open(input).is_err());
                let folders = inputs.iter().filter(|input| input.is_dir());
                let files = files.reads_all("a file", recordings);
                let files = folders.fold(files, |files, folder| files.reads_tree("the folder", folder));
                files.writes("OUTPUT", &self.path)
            }
        }
        .check()
    }
}

/// Writes a source.
///
/// # Errors
/// A source that is broken, a file that cannot be written.
pub(crate) fn write(source: &dyn RoutingSource, output: &Output) -> Result<()> {
    let path = &output.path;
    let Some(shard_tokens) = output.shard_tokens else {
        write_file(source, path)?;
        moescope_cli::outln!("{}: {} sequences", path.display(), source.len());
        return Ok(());
    };
    let geometry = source.geometry().clone();
    let mut writer = ShardedWriter::create(path, geometry, source.domains(), source.model(), shard_tokens)?;
    append(source, &mut writer)?;
    writer.finish()?;
    moescope_cli::outln!("{}: {} sequences in shards", path.display(), source.len());
    Ok(())
}

/// Writes a source as one file, with a progress bar.
fn write_file(source: &dyn RoutingSource, path: &Path) -> Result<()> {
    let bar = progress_bar(source.len(), "sequences");
    write_trace(path, &Watched { source, bar: &bar }).with_context(|| format!("cannot write {}", path.display()))?;
    bar.finish_and_clear();
    Ok(())
}

/// A source that moves a progress bar when a sequence is read.
struct Watched<'a> {
    source: &'a dyn RoutingSource,
    bar: &'a ProgressBar,
}

impl RoutingSource for Watched<'_> {
    fn geometry(&self) -> &Geometry {
        self.source.geometry()
    }

    fn len(&self) -> usize {
        self.source.len()
    }

    fn sequence(&self, index: usize) -> moe_trace::Result<Sequence<'_>> {
        self.bar.inc(1);
        self.source.sequence(index)
    }

    fn domains(&self) -> &[String] {
        self.source.domains()
    }

    fn model(&self) -> Option<&str> {
        self.source.model()
    }

    fn import_report(&self) -> &ImportReport {
        self.source.import_report()
    }

    fn notices(&self) -> &[Notice] {
        self.source.notices()
    }
}

/// Appends all sequences of a source to shards.
///
/// # Errors
/// A source that is broken or does not fit, a file that cannot be written.
pub(crate) fn append(source: &dyn RoutingSource, writer: &mut ShardedWriter) -> Result<()> {
    if source.geometry() != writer.geometry() {
        bail!("the trace has {}, the shards have {}", source.geometry(), writer.geometry());
    }
    let bar = progress_bar(source.len(), "sequences");
    for index in 0..source.len() {
        writer.push(&source.sequence(index)?.to_buf())?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    writer.add_import_report(&ImportReport::of_copy(source));
    Ok(())
}

/// Writes a stream; into shards sequence by sequence, into a file all at once. Returns the number of sequences.
///
/// # Errors
/// A stream that is broken, a file that cannot be written.
pub(crate) fn write_stream(stream: &mut dyn SequenceStream, output: &Output) -> Result<usize> {
    let path = &output.path;
    let Some(shard_tokens) = output.shard_tokens else {
        let trace = collect(stream)?;
        write_file(&trace, path)?;
        return Ok(trace.len());
    };
    let geometry = stream.geometry().clone();
    let mut writer = ShardedWriter::create(path, geometry, stream.domains(), stream.model(), shard_tokens)?;
    let bar = spinner("sequences read");
    let mut count = 0;
    while let Some(sequence) = stream.next_sequence()? {
        writer.push(&sequence)?;
        count += 1;
        bar.inc(1);
    }
    writer.add_import_report(stream.report());
    writer.finish()?;
    bar.finish_and_clear();
    Ok(count)
}
