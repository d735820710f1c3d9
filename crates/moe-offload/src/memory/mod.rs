//! Host memory: huge pages under weights, reads through or past the page cache, and system calls.

mod file_reads;
mod free;
mod host_memory;
pub(crate) mod os;

pub use file_reads::FileReads;

pub(crate) use file_reads::{ReadBuffer, UncachedFile, read_parts, room_for};
pub(crate) use free::free_host_bytes;
pub(crate) use host_memory::{HostArena, HostMemory, PAGE};
