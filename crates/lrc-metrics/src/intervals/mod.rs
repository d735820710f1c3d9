//! Confidence intervals: bootstrap resampling of sequences and of groups of sequences.

mod bootstrap;
mod figures;
mod group_row;
mod groups;
mod nan;
mod resampled;
mod resamples;
mod sequence_key;
mod trace_intervals;
mod use_counts;

pub use bootstrap::Bootstrap;
pub use figures::Figures;
pub use resampled::{Intervals, Resampled};
pub use trace_intervals::{MetricsIntervals, TraceIntervals};
