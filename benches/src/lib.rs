//! What the benchmarks of the workspace share; the benchmarks are the files beside `src`.

use lrc_metrics::oracle;
use moe_trace::{Geometry, MemoryTrace};

/// Tokens of each sequence of [`synthetic_trace`].
pub const TOKENS: usize = 512;

/// A seeded trace of one layer of `experts` experts, top-8, with sequences of [`TOKENS`] tokens whose routing is sticky.
///
/// ```
/// use moe_trace::RoutingSource;
/// assert_eq!(moe_benches::synthetic_trace(64, 2).sequence(1)?.len(), moe_benches::TOKENS);
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
///
/// # Panics
/// If there are fewer than 8 experts.
pub fn synthetic_trace(experts: usize, sequences: usize) -> MemoryTrace {
    let geometry = Geometry::decoder(1, experts, 8).expect("a valid geometry");
    let mut trace = MemoryTrace::new(geometry.clone());
    for sequence in oracle::synthetic(&geometry, sequences, TOKENS, 20_240_607) {
        trace.push(sequence).expect("a valid sequence");
    }
    trace
}
