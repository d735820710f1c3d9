//! The safetensors trace file; `docs/trace-format.md` specifies it.

mod column;
mod header;
mod reader;
mod writer;

pub(crate) use header::Header;
pub use reader::TraceFile;
pub use writer::write_trace;
pub(crate) use writer::{Columns, sync_directory, write_atomically};
