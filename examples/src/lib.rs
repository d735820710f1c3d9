//! What the example programs share: presentation, threads.

mod output;
mod page;
mod threads;
mod windows;

pub use output::{per_cent, progress_bar, table, write_json};
pub use page::{Page, axes, window_axis};
pub use threads::{processors, set_threads};
pub use windows::fitting_windows;
