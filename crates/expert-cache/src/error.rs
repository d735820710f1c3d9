//! What can be wrong with a cache.

/// Result of this crate.
pub type Result<T, E = CacheError> = std::result::Result<T, E>;

/// An error of a cache, a policy, a simulation or a curve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A capacity that no cache of this pool can have.
    #[error("capacity is {capacity} slots, allowed are 1..={experts}")]
    Capacity {
        /// The capacity asked for.
        capacity: usize,
        /// Number of experts in the pool.
        experts: usize,
    },
    /// A look-ahead of no token.
    #[error("look-ahead window is {window} tokens, it must be at least 1")]
    Window {
        /// The window asked for.
        window: usize,
    },
    /// A policy that looks ahead was built without requests to look at.
    #[error("policy {policy} needs the requests to come, and none were given")]
    NeedsFuture {
        /// The policy.
        policy: crate::PolicyKind,
    },
    /// A policy whose parameter is too small.
    #[error("the parameter of policy {policy} must be at least {least}")]
    PolicyParameter {
        /// The policy.
        policy: crate::PolicyKind,
        /// The least value allowed.
        least: usize,
    },
    /// A name that no policy has.
    #[error("there is no policy {name:?}, known are {}", crate::PolicyKind::known_names())]
    UnknownPolicy {
        /// The name.
        name: String,
    },
    /// A layer that the trace does not have.
    #[error("layer {layer} is out of range, the trace has {layers} MoE layers")]
    LayerOutOfRange {
        /// The layer asked for.
        layer: usize,
        /// Number of layers.
        layers: usize,
    },
    /// A sequence with more accesses than a curve can count.
    #[error("a sequence has {accesses} expert slots, the limit is {limit}")]
    SequenceTooLong {
        /// Slots of the sequence in the pool.
        accesses: usize,
        /// The limit.
        limit: usize,
    },
    /// A sequence of another model than the simulated one.
    #[error("the sequence has another geometry than the simulation was made for")]
    Geometry,
    /// A set over another pool than the cache's.
    #[error("the set is over {found} experts, the cache over {expected}")]
    Universe {
        /// Universe of the set.
        found: usize,
        /// Universe of the cache.
        expected: usize,
    },
    /// A sequence of the trace cannot be read.
    #[error("cannot read the trace")]
    Trace(#[from] moe_trace::TraceError),
}
