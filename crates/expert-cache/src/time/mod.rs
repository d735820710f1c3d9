//! How long a plan takes: hardware, costs, and a clock that runs copies beside compute.

mod cost;
mod profile;
mod speed;
mod timeline;

pub use cost::{CostModel, Linear, ModelSize};
pub use profile::{HardwareProfile, Overlap, Processor, Transfer};
pub use speed::{PhaseSpeed, Speed};
pub use timeline::Timeline;
