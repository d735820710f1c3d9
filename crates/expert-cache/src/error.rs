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
    /// A policy whose hit rates one pass over a trace cannot give.
    #[error("policy {policy} has no curve, known are lru, lfu, belady, belady-bypass, look-ahead-N")]
    NoCurve {
        /// The policy.
        policy: crate::PolicyKind,
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
    /// A cache smaller than an expert.
    #[error("the cache has {capacity} bytes, the largest expert {largest}")]
    CapacityBytes {
        /// Bytes of the cache.
        capacity: u64,
        /// Bytes of the largest expert.
        largest: u64,
    },
    /// An expert of no size, or sizes whose sum is no 64-bit number.
    #[error("expert {expert} of the pool has an impossible size of {bytes} bytes")]
    ExpertBytes {
        /// Key of the expert.
        expert: usize,
        /// Its size.
        bytes: u64,
    },
    /// Sizes for another number of layers.
    #[error("there are sizes for {found} layers, the pool has {layers}")]
    LayerSizes {
        /// Number of sizes.
        found: usize,
        /// Layers of the pool.
        layers: usize,
    },
    /// An expert that a pool does not have.
    #[error("expert {expert} is out of range, the pool has {experts}")]
    KeyOutOfRange {
        /// Key of the expert.
        expert: usize,
        /// Experts of the pool.
        experts: usize,
    },
    /// A policy chose an expert that may not leave.
    #[error("policy {policy} chose expert {victim} to be evicted, which {problem}")]
    Victim {
        /// Name of the policy.
        policy: &'static str,
        /// Key of the expert.
        victim: usize,
        /// Why it may not leave.
        problem: &'static str,
    },
    /// A policy that was made for another pool.
    #[error("policy {policy} was made for a pool of {found} experts, the cache is over {expected}")]
    PolicyUniverse {
        /// Name of the policy.
        policy: &'static str,
        /// Experts of the policy's pool.
        found: usize,
        /// Experts of the cache's pool.
        expected: usize,
    },
    /// A load that is looked up in a plan that it does not belong to.
    #[error("the load of expert {expert} is not of this plan")]
    OtherPlan {
        /// Key of the expert.
        expert: usize,
    },
    /// A plan that cannot be taken back: there was none, or it was taken back already.
    #[error("there is no plan to take back: a plan is taken back once, before the next request")]
    NoPlan,
    /// A plan is taken back from behind its last load on.
    #[error("{loaded} loads of the plan are said to be done, it has {loads}")]
    Loaded {
        /// Loads that are said to be done.
        loaded: usize,
        /// Loads of the plan.
        loads: usize,
    },
    /// A guard that comes too late: the cache is not empty.
    #[error("{resident} experts are resident, a prefill quota is given to an empty cache")]
    NotEmpty {
        /// Number of resident experts.
        resident: usize,
    },
    /// An expert that is resident already.
    #[error("expert {expert} of the pool is resident twice")]
    ResidentTwice {
        /// Key of the expert.
        expert: usize,
    },
    /// Residents that do not fit.
    #[error("the residents take {wanted} of {capacity} bytes or slots")]
    NoRoom {
        /// What they take.
        wanted: u64,
        /// What there is.
        capacity: u64,
    },
    /// A request without router weights where misses are served by weight.
    #[error("skipping and substituting need router weights, and the request has none")]
    NeedsMass,
    /// A table over more pairs than there should be.
    #[error("a table of {rows} x {columns} entries is too large, the limit is {limit}")]
    TooManyPairs {
        /// Rows of the table.
        rows: usize,
        /// Columns of the table.
        columns: usize,
        /// The largest number of entries.
        limit: usize,
    },
    /// A probability outside of 0..=1.
    #[error("accuracy is {accuracy}, allowed are 0..=1")]
    Accuracy {
        /// The accuracy asked for.
        accuracy: f64,
    },
    /// A prefetcher that knows the future was built without requests to look at.
    #[error("prefetcher {prefetcher} needs the requests to come, and none were given")]
    PrefetcherNeedsFuture {
        /// The prefetcher.
        prefetcher: crate::PrefetcherKind,
    },
    /// A name that no prefetcher has.
    #[error(
        "there is no prefetcher {name:?}, known are none, previous-token, next-layer, markov, history-PASSES, oracle-ACCURACY"
    )]
    UnknownPrefetcher {
        /// The name.
        name: String,
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
    /// A profile of an unknown version.
    #[error("the profile has version {version}, known is {known}")]
    ProfileVersion {
        /// Its version.
        version: u32,
        /// The version that is read.
        known: u32,
    },
    /// A profile of another model.
    #[error("the profile is of another model")]
    ProfileGeometry,
    /// A profile whose pools have other layers.
    #[error("the profile is of other pools")]
    ProfilePools,
    /// A profile of a cache of another size.
    #[error("pool {pool} of the profile has capacity {found}, the cache {expected}")]
    ProfileCapacity {
        /// Number of the pool.
        pool: usize,
        /// Capacity in the profile, in bytes or slots.
        found: u64,
        /// Capacity of the cache.
        expected: u64,
    },
    /// A resident that its pool does not have.
    #[error("pool {pool} of the profile has no layer {layer}, expert {expert}")]
    ProfileExpert {
        /// Number of the pool.
        pool: usize,
        /// The layer.
        layer: u16,
        /// The expert.
        expert: u16,
    },
    /// Something else than a profile.
    #[error("not a profile of residents")]
    Json(#[from] serde_json::Error),
    /// A budget for no layer.
    #[error("there are no layers")]
    NoLayers,
    /// Costs of another model.
    #[error("the costs are of {found} layers, the model has {expected}")]
    CostLayers {
        /// Layers of the costs.
        found: usize,
        /// MoE layers of the model.
        expected: usize,
    },
    /// A layer whose values cannot be compared.
    #[error("value of layer {layer}: {problem}")]
    LayerValue {
        /// The layer.
        layer: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// A budget that does not suffice for one slot a layer.
    #[error("{bytes} bytes are too few, one slot a layer takes {least}")]
    Budget {
        /// Bytes of the budget.
        bytes: u64,
        /// Bytes of one slot a layer.
        least: u64,
    },
    /// Nothing to choose from.
    #[error("there is no {what} to try")]
    NoChoice {
        /// What is missing.
        what: &'static str,
    },
    /// A budget in which nothing was tried.
    #[error("the smallest cache that was tried takes {least} bytes, the budget is {bytes}")]
    NoCandidate {
        /// Bytes of the budget.
        bytes: u64,
        /// Bytes of the smallest cache that was tried.
        least: u64,
    },
    /// A name that no layout has.
    #[error("there is no layout {name:?}, known are {}", crate::Layout::ALL.map(|layout| layout.to_string()).join(", "))]
    UnknownLayout {
        /// The name.
        name: String,
    },
    /// A number of resamples that no bootstrap can have.
    #[error("number of resamples is {resamples}, allowed are 1..={limit}")]
    Resamples {
        /// The number asked for.
        resamples: usize,
        /// The limit.
        limit: usize,
    },
    /// A trace that says nothing about decoding.
    #[error("the trace has no decoded token, and the speed of decoding is what is asked for")]
    NoDecodedTokens,
    /// A target or an option of a bootstrap that cannot be.
    #[error("{field} is {value}, it must be {limit}")]
    Figure {
        /// The figure.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        limit: &'static str,
    },
    /// A figure that no machine has.
    #[error("{field} is {value}, it must be {limit}")]
    Profile {
        /// The figure.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        limit: &'static str,
    },
    /// A name that no preset has.
    #[error("there is no preset {name:?}, known are {}", crate::HardwareProfile::presets().collect::<Vec<_>>().join(", "))]
    UnknownPreset {
        /// The name.
        name: String,
    },
    /// A sequence of the trace cannot be read.
    #[error("cannot read the trace")]
    Trace(#[from] moe_trace::TraceError),
}

impl CacheError {
    pub(crate) fn pairs(rows: usize, columns: usize, limit: usize) -> Result<()> {
        let fits = rows.checked_mul(columns).is_some_and(|entries| entries <= limit);
        if fits { Ok(()) } else { Err(CacheError::TooManyPairs { rows, columns, limit }) }
    }

    pub(crate) fn at_least_one(field: &'static str, value: usize) -> Result<()> {
        if value == 0 { Err(CacheError::TooSmall { field, value, min: 1 }) } else { Ok(()) }
    }
}
