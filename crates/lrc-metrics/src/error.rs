//! What can be wrong with a measurement.

use std::fmt::Debug;

use crate::experts::VocabularyToken;

/// Result of this crate.
pub type Result<T, E = MetricError> = std::result::Result<T, E>;

/// Longest window where many histograms are kept at once: intervals, the monitor.
pub(crate) const LONGEST_WINDOW: usize = 4096;

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
    /// Windows of which none fits into a sequence.
    #[error("window length is {window} tokens, the longest of {sequences} sequences has {longest}")]
    WindowTooLong {
        /// The shortest length asked for.
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
    /// A layer that was selected twice.
    #[error("layer {layer} is selected twice")]
    DuplicateLayer {
        /// The layer.
        layer: usize,
    },
    /// A sequence whose tokens use another number of experts than those of the accumulator.
    #[error("a sequence is top-{found}, the accumulator top-{expected}")]
    TopK {
        /// Experts a token of the sequence.
        found: usize,
        /// Experts a token of the accumulator's geometry.
        expected: usize,
    },
    /// A reference router without domains.
    #[error("a reference router needs at least one domain")]
    NoDomains,
    /// A monitor of no sequence.
    #[error("number of running sequences is 0, it must be at least 1")]
    NoRunningSequences,
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
    /// A sequence of a domain that the accumulator does not know.
    #[error("domain {domain} is out of range, the accumulator has {domains} domains")]
    Domain {
        /// The sequence's domain.
        domain: usize,
        /// Number of domains.
        domains: usize,
    },
    /// A trace without the token ids that a metric counts for.
    #[error("the trace has no ids of {token:?} tokens")]
    NoTokenIds {
        /// The tokens to count for.
        token: VocabularyToken,
    },
    /// More token ids than tokens.
    #[error("{ids} token ids are given, the sequence has {tokens} tokens")]
    TokenCount {
        /// Number of ids.
        ids: usize,
        /// Tokens of the sequence.
        tokens: usize,
    },
    /// A sequence with more tokens than a metric can count.
    #[error("a sequence has {tokens} tokens, the limit is {limit}")]
    SequenceLength {
        /// Tokens of the sequence.
        tokens: usize,
        /// The limit.
        limit: usize,
    },
    /// Two traces that are not of the same text.
    #[error("the earlier trace has {earlier} {what}, the later one {later}")]
    Pairing {
        /// What differs in number.
        what: &'static str,
        /// Number in the earlier trace.
        earlier: usize,
        /// Number in the later trace.
        later: usize,
    },
    /// A reference router with an expert that the layers do not have.
    #[error("reference of domain {domain}: expert {expert} is out of range, a layer has {experts}")]
    ReferenceExpert {
        /// The domain.
        domain: usize,
        /// Its expert.
        expert: usize,
        /// Experts a layer.
        experts: usize,
    },
    /// A window too long for what keeps many histograms at once.
    #[error("window length is {window} tokens, the limit is {limit}")]
    WindowLimit {
        /// The length asked for.
        window: usize,
        /// The limit.
        limit: usize,
    },
    /// More windows in one group of sequences than 32 bits count.
    #[error("a group of sequences has {windows} windows, the limit is {limit}")]
    GroupWindows {
        /// Windows of one length in the group.
        windows: u64,
        /// The limit.
        limit: u64,
    },
    /// A horizon of no token.
    #[error("horizon is {horizon} tokens, it must be at least 1")]
    Horizon {
        /// The horizon asked for.
        horizon: u64,
    },
    /// A bootstrap of no or of too many resamples.
    #[error("number of resamples is {resamples}, allowed are 1..={limit}")]
    Resamples {
        /// The number asked for.
        resamples: usize,
        /// The limit.
        limit: usize,
    },
    /// A confidence that no interval can have.
    #[error("confidence is {confidence}, it must be between 0 and 1")]
    Confidence {
        /// The confidence asked for.
        confidence: f64,
    },
    /// Too few sequences to resample.
    #[error("a bootstrap needs at least 2 sequences, there are {sequences}")]
    TooFewSequences {
        /// Number of sequences.
        sequences: u64,
    },
    /// Counts that no two runs with and without prefetching can have.
    #[error("{what} is {found}, allowed are {least}..={most}")]
    Prefetch {
        /// The count.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The least possible.
        least: u64,
        /// The most possible.
        most: u64,
    },
    /// Accumulators that were created with different arguments.
    #[error("accumulators do not belong together: {what} is {found}, expected {expected}")]
    Mismatch {
        /// The argument.
        what: &'static str,
        /// Its value in the accumulator to be added.
        found: String,
        /// Its value in the accumulator that is added to.
        expected: String,
    },
    /// A serialized accumulator that cannot be one.
    #[error("serialized accumulator is damaged: {what} is {found}, expected {expected}")]
    State {
        /// What is wrong.
        what: &'static str,
        /// Its value.
        found: String,
        /// The value or the values that it can have.
        expected: String,
    },
    /// A hit-rate curve cannot be computed.
    #[error(transparent)]
    Cache(#[from] expert_cache::CacheError),
    /// A routing event that no router can have sent.
    #[error("a routing event is not valid")]
    Event(#[source] moe_trace::TraceError),
    /// A sequence of the trace cannot be read.
    #[error("cannot read the trace")]
    Trace(#[from] moe_trace::TraceError),
}

/// Checks that two accumulators agree in an argument.
pub(crate) fn same<T: PartialEq + Debug>(what: &'static str, expected: &T, found: &T) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(MetricError::Mismatch { what, found: format!("{found:?}"), expected: format!("{expected:?}") })
    }
}
