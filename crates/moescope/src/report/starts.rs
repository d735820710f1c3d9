//! SRP by where a window starts, in bounded memory.

use std::ops::Range;

use anyhow::Result;
use lrc_metrics::PositionSrp;
use moe_trace::{LayerId, RoutingSource};

use super::measure::fold;

/// Starts of windows that are told apart.
const STARTS: usize = 2048;

/// Bytes that the window counts of all threads may take together.
const MOST_BYTES: usize = 512 << 20;

/// Windows that start at one token, over all sequences and layers.
#[derive(Debug, PartialEq)]
pub(crate) struct WindowStart {
    /// The first token of the windows.
    pub(crate) start: usize,
    /// Number of windows.
    pub(crate) windows: u64,
    /// Their segment routing best performance.
    pub(crate) srp: f64,
}

/// Measures every start up to [`STARTS`] that a sequence reaches. The trace is read once for all starts whose window
/// counts fit into [`MOST_BYTES`], and again for the next ones.
///
/// # Errors
/// A sequence that is broken.
pub(crate) fn window_starts(trace: &dyn RoutingSource, window: usize) -> Result<Vec<WindowStart>> {
    starts_within(trace, window, MOST_BYTES)
}

fn starts_within(trace: &dyn RoutingSource, window: usize, bytes: usize) -> Result<Vec<WindowStart>> {
    let geometry = trace.geometry();
    let layers: Vec<LayerId> = geometry.layer_ids().collect();
    let counts = layers.len() * geometry.experts() * window * rayon::current_num_threads();
    let at_once = (bytes / size_of::<u64>() / counts.max(1)).max(1);
    let mut starts = Vec::new();
    for first in (0..STARTS).step_by(at_once) {
        let range: Range<usize> = first..STARTS.min(first + at_once);
        let len = range.len();
        let empty = PositionSrp::new(geometry, &layers, window, range)?;
        let found = fold(trace, "sequences cut by window start", &empty)?.finish();
        let reached_all = found.len() == len;
        starts.extend(found.into_iter().map(|found| WindowStart {
            start: found.start,
            windows: found.report.windows,
            srp: found.report.model.srp,
        }));
        if !reached_all {
            break;
        }
    }
    Ok(starts)
}

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, SequenceStream, Synthetic, SyntheticOptions};

    use super::*;

    #[test]
    fn starts_are_the_same_in_one_pass_and_in_many() {
        let geometry = Geometry::decoder(2, 8, 2).unwrap();
        let options = SyntheticOptions { sequences: 3, tokens: 40, ..SyntheticOptions::default() };
        let trace = Synthetic::new(geometry, options).collect().unwrap();
        let at_once = starts_within(&trace, 4, MOST_BYTES).unwrap();
        assert_eq!(at_once.len(), 37);
        // One start per pass, and a few.
        for bytes in [0, 2 * 8 * 4 * 8 * 5 * rayon::current_num_threads()] {
            assert_eq!(starts_within(&trace, 4, bytes).unwrap(), at_once);
        }
    }
}
