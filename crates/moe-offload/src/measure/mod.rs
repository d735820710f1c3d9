//! Measurements: speeds of a machine, prices of misses, replays, and distances between runs.

mod divergence;
mod hardware;
mod miss_seconds;
mod replay;

pub use divergence::Divergence;
pub use hardware::{measure, measure_disk};
pub use miss_seconds::MissSeconds;
pub use replay::{Replay, ReplayReport, ReplayedPass, ReplayedPhase};
