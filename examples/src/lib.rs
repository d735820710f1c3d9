//! What the example programs share: presentation, threads.

mod output;
mod page;
mod threads;

pub use output::{per_cent, progress_bar, table, write_json};
pub use page::{Page, axes};
pub use threads::{processors, set_threads};
