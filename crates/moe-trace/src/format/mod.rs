//! The safetensors trace file; `docs/trace-format.md` specifies it.

mod column;
mod damage;
mod header;
mod narrow;
mod origin;
mod reader;
mod writer;

pub(crate) use header::Header;
#[cfg(feature = "import")]
pub(crate) use origin::Origin as MappedOrigin;
pub use reader::TraceFile;
#[cfg(feature = "import")]
pub(crate) use reader::map_file;
pub(crate) use writer::Columns;
pub use writer::write_trace;
