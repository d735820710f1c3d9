//! Writers of other formats.

mod csv;
mod json_lines;
mod npy;
#[cfg(feature = "parquet")]
mod parquet;
mod plain;
mod rows;

use std::path::Path;

use self::csv::Csv;
use self::json_lines::JsonLines;
use self::npy::{Npy, Npz};
#[cfg(feature = "parquet")]
use self::parquet::Parquet;
use self::plain::Plain;
use crate::{Result, RoutingSource};

/// Writes one foreign format. Files are complete or absent.
pub trait Exporter: Sync {
    /// A short name without spaces.
    fn name(&self) -> &'static str;

    /// What is written, in one line; what the format cannot hold.
    fn description(&self) -> &'static str;

    /// Returns true if the file keeps the warnings of an import that the source came from, so that reading it back says them
    /// again. Otherwise what was inferred looks as if it were known.
    fn keeps_warnings(&self) -> bool {
        false
    }

    /// Writes a source; `progress` is called with the number of each sequence that is done.
    ///
    /// # Errors
    /// What reading the source finds; [`TraceError::Io`](crate::TraceError::Io);
    /// [`TraceError::NotExportable`](crate::TraceError::NotExportable) for a trace that the format cannot hold.
    fn write(&self, source: &dyn RoutingSource, path: &Path, progress: &dyn Fn(usize)) -> Result<()>;
}

/// All exporters.
pub fn exporters() -> &'static [&'static dyn Exporter] {
    &[
        &Csv,
        &JsonLines,
        &Npy,
        &Npz,
        &Plain,
        #[cfg(feature = "parquet")]
        &Parquet,
    ]
}

/// The exporter of a name.
///
/// ```
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf, exporter};
/// let geometry = Geometry::decoder(1, 4, 2)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// trace.push(SequenceBuf::from_experts(&geometry, vec![3, 1], Phase::Decode)?)?;
/// let directory = tempfile::tempdir().unwrap();
/// let path = directory.path().join("trace.csv");
/// exporter("csv").unwrap().write(&trace, &path, &|_| {})?;
/// let text = std::fs::read_to_string(path).unwrap();
/// assert_eq!(text, "sequence,token,layer,stack,phase,expert_0,expert_1\n0,0,0,decoder,decode,3,1\n");
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
pub fn exporter(name: &str) -> Option<&'static dyn Exporter> {
    exporters().iter().find(|exporter| exporter.name() == name).copied()
}
