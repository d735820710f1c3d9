//! Folding a trace into an accumulator.

mod merge;
mod selection;
mod serialized;

pub use merge::Merge;

pub(crate) use selection::Selection;
pub(crate) use serialized::{MOST, Restore, checked_serde, intact, total, within};

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use moe_trace::{RoutingSource, Sequence};

use crate::error::{MetricError, Result};

/// A metric that takes sequences one at a time and can be merged.
///
/// Merging must be exact: the result of a set of sequences is the same however they are ordered and split.
pub trait Accumulator: Clone + Send + Sync {
    /// Adds a sequence.
    ///
    /// # Errors
    /// If the sequence does not fit the accumulator.
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()>;

    /// Adds the sequences of another accumulator.
    ///
    /// # Errors
    /// [`MetricError::Mismatch`](crate::MetricError::Mismatch) if the other was created with other arguments; this one
    /// may then hold a part of it and should be dropped.
    fn merge(&mut self, other: &Self) -> Result<()>;
}

/// Adds every sequence of a source to a clone of `empty`, in parallel on the current rayon pool.
///
/// The result does not depend on the number of threads. `progress` is called after every sequence with the number of
/// sequences done, from any thread. There is one accumulator a thread, and no other.
///
/// # Errors
/// What reading or adding the first bad sequence finds.
///
/// ```
/// use lrc_metrics::{LoadBalance, accumulate};
/// use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
///
/// let geometry = Geometry::decoder(1, 2, 1)?;
/// let mut trace = MemoryTrace::new(geometry.clone());
/// for expert in [0, 0, 0, 1] {
///     trace.push(SequenceBuf::from_experts(&geometry, vec![expert], Phase::Decode)?)?;
/// }
/// let load = accumulate(&trace, &LoadBalance::new(&geometry), &|_done| {})?.finish();
/// assert_eq!(load[0].activation_rates, [0.75, 0.25]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn accumulate<A: Accumulator>(
    source: &dyn RoutingSource,
    empty: &A,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<A> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = AtomicBool::new(false);
    // Every thread takes the next sequence until none is left. Numbers are handed out in order and a taken sequence is
    // finished, so the bad sequence of the lowest number is always among the errors.
    let worker = || -> Result<A, (usize, MetricError)> {
        let mut accumulator = empty.clone();
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= source.len() {
                break;
            }
            let added = source.sequence(index).map_err(Into::into).and_then(|sequence| accumulator.update(&sequence));
            if let Err(error) = added {
                failed.store(true, Ordering::Relaxed);
                return Err((index, error));
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
        Ok(accumulator)
    };
    let mut all: Option<A> = None;
    let mut first_error: Option<(usize, MetricError)> = None;
    for result in rayon::broadcast(|_| worker()) {
        match (result, &mut all) {
            (Ok(part), None) => all = Some(part),
            (Ok(part), Some(all)) => all.merge(&part)?,
            (Err(error), _) if first_error.as_ref().is_none_or(|first| error.0 < first.0) => first_error = Some(error),
            (Err(_), _) => {}
        }
    }
    match first_error {
        Some((_, error)) => Err(error),
        None => Ok(all.unwrap_or_else(|| empty.clone())),
    }
}
