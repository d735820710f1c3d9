//! Whatever can be read as a trace.

use std::path::Path;

use super::input::Input;
use super::opened::Import;
use super::sample::Sample;
use super::{ImportOptions, detect, importer, names};
use crate::{Result, RoutingSource, ShardedTrace, TraceError, TraceFile};

/// A trace, or a file of another recorder that can be made one.
pub enum Opened {
    /// A trace file or a folder of shards.
    Trace(Box<dyn RoutingSource>),
    /// A foreign file.
    Import(Box<Import>),
}

/// Opens a trace file, a folder of shards, or a foreign file of any format.
///
/// A file in gzip, a pipe, and `-` for standard input will do. The content decides what it is.
///
/// ```
/// use moe_trace::{ImportOptions, Opened, RoutingSource, SequenceStream, open_or_import};
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("rows.csv");
/// std::fs::write(&path, "token,layer,expert,phase\n0,0,3,decode\n1,0,1,decode\n").unwrap();
/// let Opened::Import(mut import) = open_or_import(&path, &ImportOptions::default())? else { panic!("a foreign file") };
/// assert_eq!((import.importer().name(), import.collect()?.len()), ("csv", 1));
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
///
/// # Errors
/// As [`TraceFile::open`], [`ShardedTrace::open`] and [`open_import`](crate::open_import); [`TraceError::UnknownFormat`] says
/// what a file is that cannot be read; [`TraceError::UnusedOption`] for an option that says something about a trace.
pub fn open_or_import(path: impl AsRef<Path>, options: &ImportOptions) -> Result<Opened> {
    let input = Input::open(path, options.max_unpacked)?;
    let sample = Sample::take(&input)?;
    if options.format.is_none() && sample.is_trace() {
        options.check_unused(input.path())?;
        let trace: Box<dyn RoutingSource> = if input.is_folder() {
            Box::new(ShardedTrace::open(input.path())?)
        } else {
            Box::new(TraceFile::of_file(input.path(), input.file()?.as_ref())?)
        };
        if options.strict {
            trace.import_report().refuse_warnings(input.path())?;
        }
        return Ok(Opened::Trace(trace));
    }
    import_input(input, &sample, options).map(|import| Opened::Import(Box::new(import)))
}

/// Opens an input as a foreign file.
pub(super) fn import_input(input: Input, sample: &Sample, options: &ImportOptions) -> Result<Import> {
    let importer = match &options.format {
        Some(name) => importer(name).ok_or_else(|| TraceError::NoSuchFormat { name: name.clone(), known: names() })?,
        None => detect(&input, sample)?,
    };
    Import::new(importer, input, options)
}
