//! Exact sums of accumulators and of other counts.

use super::Accumulator;
use crate::error::Result;

/// A value that can be added to another of its kind: every [`Accumulator`], and a comparison such as
/// [`Saturation`](crate::Saturation) that is not folded sequence by sequence.
pub trait Merge: Clone + Send + Sync {
    /// Adds the counts of `other`.
    ///
    /// # Errors
    /// [`MetricError::Mismatch`](crate::MetricError::Mismatch) if the other was created with other arguments.
    fn add(&mut self, other: &Self) -> Result<()>;
}

impl<A: Accumulator> Merge for A {
    fn add(&mut self, other: &A) -> Result<()> {
        self.merge(other)
    }
}
