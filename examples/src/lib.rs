//! What the example programs share: presentation, threads, devices, sizes of models.

mod default_model;
mod device;
mod model_shape;
mod output;
mod page;
mod threads;
mod windows;

pub use default_model::default_model;
pub use device::{DeviceName, page_lock};
pub use model_shape::ModelShape;
pub use output::{per_cent, progress_bar, table, write_json};
pub use page::{Page, axes, window_axis};
pub use threads::{processors, set_threads};
pub use windows::fitting_windows;
