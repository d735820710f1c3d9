//! How long a plan takes: hardware, costs, and a clock that runs copies beside compute.

mod cost;
mod link;
mod pass;
mod profile;
mod speed;
#[cfg(test)]
mod tests;
mod timeline;

pub use cost::{CostModel, Linear, ModelSize, WhileLoading};
pub use pass::Pass;
pub use profile::{HardwareProfile, Overlap, Processor, Transfer};
pub use speed::{PhaseSpeed, Speed};
pub use timeline::Timeline;
