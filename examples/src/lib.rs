//! Presentation that the example programs share.

mod output;

pub use output::{per_cent, progress_bar, table, write_json};
