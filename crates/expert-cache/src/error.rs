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
    /// A name that no policy has.
    #[error("there is no policy {name:?}, known are lru, lfu, belady, look-ahead-N")]
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
    /// A pool without layers, or no pool at all.
    #[error("a pool has no layer")]
    EmptyPool,
    /// A layer that is in more than one place.
    #[error("layer {layer} is in two pools, or twice in one")]
    DuplicateLayer {
        /// The layer.
        layer: usize,
    },
    /// A layer that a partition leaves out.
    #[error("layer {layer} is in no pool")]
    UncoveredLayer {
        /// The layer.
        layer: usize,
    },
    /// A number that must not be 0.
    #[error("{field} is {value}, it must be at least {min}")]
    TooSmall {
        /// What was given.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The smallest allowed.
        min: usize,
    },
    /// A sequence with more accesses than a curve can count.
    #[error("a sequence has {accesses} expert slots, the limit is {limit}")]
    SequenceTooLong {
        /// Slots of the sequence in the pool.
        accesses: usize,
        /// The limit.
        limit: usize,
    },
    /// Pools or sequences of different models.
    #[error("pools and sequences are not of one model")]
    Geometry,
    /// Another number of caches than of pools.
    #[error("there are {caches} caches for {pools} pools")]
    CacheCount {
        /// Number of caches.
        caches: usize,
        /// Number of pools.
        pools: usize,
    },
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

impl CacheError {
    pub(crate) fn at_least_one(field: &'static str, value: usize) -> Result<()> {
        if value == 0 { Err(CacheError::TooSmall { field, value, min: 1 }) } else { Ok(()) }
    }
}
