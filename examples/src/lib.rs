//! What the example programs share: presentation, threads, devices.

mod device;
mod experts;
mod output;
mod page;
mod threads;
mod windows;

pub use device::{DeviceName, page_lock};
pub use experts::{host_experts, mapped_experts, open_checkpoint};
pub use output::{byte_bar, per_cent, print_warnings, progress_bar, table, write_json};
pub use page::{Page, axes, window_axis};
pub use threads::{processors, set_threads};
pub use windows::fitting_windows;
