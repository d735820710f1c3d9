//! What the benchmarks of the workspace share; the benchmarks are the files beside `src`.

use moe_trace::{Geometry, MemoryTrace, SequenceBuf, Synthetic, SyntheticOptions};

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
    synthetic_model(&Geometry::decoder(1, experts, 8).expect("a valid geometry"), sequences)
}

/// Such a trace of a whole model.
///
/// ```
/// use moe_trace::{Geometry, RoutingSource};
/// let geometry = Geometry::decoder(3, 16, 4)?;
/// assert_eq!(moe_benches::synthetic_model(&geometry, 2).sequence(1)?.len(), moe_benches::TOKENS);
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
///
/// # Panics
/// Never: the generator makes valid sequences.
pub fn synthetic_model(geometry: &Geometry, sequences: usize) -> MemoryTrace {
    let dials = SyntheticOptions { sequences, tokens: TOKENS, ..SyntheticOptions::default() };
    let synthetic = Synthetic::new(geometry.clone(), dials);
    let mut trace = MemoryTrace::new(geometry.clone());
    for index in 0..sequences {
        let sequence = SequenceBuf { weights: None, ..synthetic.sequence(index) };
        trace.push(sequence).expect("a valid sequence");
    }
    trace
}
