//! What the benchmarks of the workspace share; the benchmarks are in `metrics.rs` and `policies.rs`.

use lrc_metrics::oracle;
use moe_trace::{Geometry, MemoryTrace};

/// Tokens of each sequence of [`synthetic_trace`].
pub const TOKENS: usize = 512;

/// A seeded trace of one layer of 64 experts, top-8, with sequences of [`TOKENS`] tokens whose routing is sticky.
///
/// ```
/// use moe_trace::RoutingSource;
/// assert_eq!(moe_benches::synthetic_trace(2).sequence(1)?.len(), moe_benches::TOKENS);
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
///
/// # Panics
/// Never: the arguments of the generator are valid.
pub fn synthetic_trace(sequences: usize) -> MemoryTrace {
    let geometry = Geometry::decoder(1, 64, 8).expect("a valid geometry");
    let mut trace = MemoryTrace::new(geometry.clone());
    for sequence in oracle::synthetic(&geometry, sequences, TOKENS, 20_240_607) {
        trace.push(sequence).expect("a valid sequence");
    }
    trace
}
