//! What can be wrong with a measurement.

/// Result of this crate.
pub type Result<T, E = MetricError> = std::result::Result<T, E>;

/// An error of a metric.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricError {
    /// A window of no token.
    #[error("window length is {window} tokens, it must be at least 1")]
    Window {
        /// The length asked for.
        window: usize,
    },
    /// A window that fits into no sequence.
    #[error("window length is {window} tokens, the longest of {sequences} sequences has {longest}")]
    WindowTooLong {
        /// The length asked for.
        window: usize,
        /// Tokens of the longest sequence.
        longest: usize,
        /// Number of sequences.
        sequences: u64,
    },
    /// No layer was selected.
    #[error("no layer is selected, the trace has {layers} MoE layers")]
    NoLayers {
        /// Number of layers of the trace.
        layers: usize,
    },
    /// A sequence with another number of experts or layers than the accumulator.
    #[error(
        "a sequence has {found_layers} layers x {found_experts} experts, the accumulator {layers} layers x {experts} experts"
    )]
    Geometry {
        /// MoE layers of the sequence.
        found_layers: usize,
        /// Experts a layer of the sequence.
        found_experts: usize,
        /// MoE layers of the accumulator's trace.
        layers: usize,
        /// Experts a layer of the accumulator.
        experts: usize,
    },
    /// A hit-rate curve cannot be computed.
    #[error(transparent)]
    Cache(#[from] expert_cache::CacheError),
    /// A sequence of the trace cannot be read.
    #[error("cannot read the trace")]
    Trace(#[from] moe_trace::TraceError),
}
