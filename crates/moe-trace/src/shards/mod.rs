//! A long capture: a directory of complete shards and an index.

mod index;
mod notice;
mod trace;
mod writer;

pub use notice::Notice;
pub use trace::ShardedTrace;
pub use writer::ShardedWriter;
