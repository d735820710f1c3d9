//! What the example programs share: presentation, threads, devices.

mod device;
mod experts;
mod files;
mod output;
mod page;
mod print;
mod run;
mod shown;
mod table;
mod threads;
mod windows;

pub use device::{DeviceName, page_lock};
pub use experts::{host_experts, mapped_experts, open_checkpoint};
pub use files::Files;
pub use output::{
    byte_bar, no_formula, output_path, per_cent, print_warnings, progress_bar, write_csv, write_json, write_text,
};
pub use page::{Page, axes, window_axis};
pub use print::{print_error_line, print_line};
pub use run::run;
pub use shown::shown;
pub use table::{Table, table};
pub use threads::{processors, set_threads};
pub use windows::fitting_windows;
