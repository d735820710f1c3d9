//! Expert-cache policies, exact plans, simulators and one-pass hit-rate curves.
//!
//! An [`ExpertCache`] turns the set of experts that a token (or a batch) wants into a [`Plan`]: hits, loads with their
//! slots and victims, bypasses. A [`Simulation`] counts the plans of a recorded trace, a [`Timeline`] says how long they take, an
//! [`Advisor`] which cache is fast enough; `moe-offload` executes them. The
//! [`curve`] module gives hit rates at every capacity in one pass, in the convention of arXiv 2505.16056.
//!
//! ```
//! use expert_cache::{ExpertCache, Oversize, PolicyKind, Pool, Requests, Simulation};
//! use moe_trace::{Geometry, LayerId, MemoryTrace, Phase, SequenceBuf};
//! use std::sync::Arc;
//!
//! // One layer of 4 experts, top-1, five decoded tokens.
//! let geometry = Geometry::decoder(1, 4, 1)?;
//! let mut trace = MemoryTrace::new(geometry.clone());
//! trace.push(SequenceBuf::from_experts(&geometry, vec![0, 1, 2, 0, 1], Phase::Decode)?)?;
//!
//! let pool = Pool::layer(&geometry, LayerId(0))?;
//! let future = Arc::new(Requests::from_source(&trace, &pool)?);
//! let hits = |kind: PolicyKind| {
//!     let cache = ExpertCache::of_kind(kind, pool.shape(), 2, Oversize::Waves, Some(&future))?;
//!     let mut simulation = Simulation::new(pool.clone(), cache)?;
//!     simulation.run(&trace)?;
//!     Ok::<_, expert_cache::CacheError>(simulation.counts()[0].total().hits)
//! };
//! assert_eq!(hits(PolicyKind::Lru)?, 0);
//! assert_eq!(hits(PolicyKind::Belady)?, 1); // 2 replaces 1, and 0 is still there
//! # Ok::<(), expert_cache::CacheError>(())
//! ```
//!
//! # Under your own engine
//!
//! An engine asks the cache before every layer, and does what the plan says. The order is:
//!
//! 1. [`request`](ExpertCache::request) decides. The plan counts as executed from then on.
//! 2. For each wave of [`Plan::waves`]: copy its loads into their slots, then compute its experts. All hits belong to the first
//!    wave. Experts of [`Plan::bypasses`] are computed from where they are stored.
//! 3. If a copy fails, [`rollback`](ExpertCache::rollback) takes the plan back from that load on, once, before the next
//!    request. Without it the expert would be hit later in a slot that does not hold it.
//! 4. [`release`](ExpertCache::release) says that the request has been computed. Before, a prefetch finds no room in a cache
//!    whose slots are all in use, and returns `None`.
//! 5. [`prefetch`](ExpertCache::prefetch) decides to load an expert that may be wanted next. If the copy fails,
//!    [`forget`](ExpertCache::forget) gives the slot back, also after other requests.
//! 6. [`sequence_end`](ExpertCache::sequence_end) tells the policy that another sequence follows.
//!
//! A [`Load`] is looked up in the plan that it came from, and in no other: a prefetch in
//! [`prefetches`](ExpertCache::prefetches), which the next request clears.
//!
//! ```
//! use expert_cache::{CacheError, ExpertCache, ExpertKey, Oversize, PolicyKind, PoolShape};
//! use moe_trace::{ExpertSet, Phase};
//!
//! // Weights of 6 experts in slow memory, one number each, and 3 slots in fast memory.
//! let store: Vec<f32> = (0..6).map(|expert| expert as f32).collect();
//! let mut slots = [f32::NAN; 3];
//! let shape = PoolShape { layers: 1, experts: 6 };
//! let mut cache = ExpertCache::of_kind(PolicyKind::Lru, shape, 3, Oversize::Waves, None)?;
//! // The third copy fails.
//! let mut copies = 0;
//! let mut copy = |slots: &mut [f32], key: ExpertKey, slot: usize| {
//!     copies += 1;
//!     slots[slot] = if copies == 3 { f32::NAN } else { store[key.index()] };
//!     copies != 3
//! };
//!
//! for wanted in [[0, 1], [1, 2], [1, 2], [3, 4]] {
//!     let set = ExpertSet::from_members(6, wanted);
//!     let mut sum = 0.0;
//!     'again: loop {
//!         let plan = cache.request(&set)?;
//!         sum = plan.hits().iter().map(|hit| slots[hit.slot.index()]).sum();
//!         for (number, load) in plan.loads().iter().enumerate() {
//!             if !copy(&mut slots, load.key, load.slot.index()) {
//!                 cache.rollback(number)?;
//!                 continue 'again;
//!             }
//!             sum += slots[load.slot.index()];
//!         }
//!         break;
//!     }
//!     assert_eq!(sum, wanted.iter().sum::<usize>() as f32);
//!     cache.release();
//!     // Expert 5 is expected next, whatever comes.
//!     if let Some(load) = cache.prefetch(ExpertKey(5), Phase::Decode, 1)? {
//!         if !copy(&mut slots, load.key, load.slot.index()) {
//!             cache.forget(load.key, load.slot);
//!         }
//!     }
//! }
//! # Ok::<(), CacheError>(())
//! ```

#![forbid(unsafe_code)]

mod advisor;
mod budget;
mod cache;
mod cache_identity;
mod convention;
pub mod curve;
mod error;
mod guard;
mod key;
mod misses;
mod plan;
mod policies;
mod policy;
mod pool;
mod prefetch;
mod profile;
mod request;
mod requests;
mod residency;
mod serving;
mod simulate;
mod sizes;
mod sweep;
mod time;

pub use advisor::{Advisor, Candidate, Choices, Figure, Layout, Setup, Slots, SpeedBootstrap, Survey, Target, Verdict};
pub use budget::{Allocation, LayerValue, best_allocation, uniform_allocation};
pub use cache::{ExpertCache, Oversize};
pub use convention::Convention;
pub use error::{CacheError, Result};
pub use key::{ExpertKey, SlotId};
pub use misses::{MissCost, MissPolicy, Substitutes};
pub use plan::{Eviction, Hit, Load, Plan, Skip, Substitute};
pub use policies::{
    ActivationAware, AdaptiveReplacement, Belady, BeladyBypass, Clock, Decayed, Fifo, Hysteresis, LayerLru, LeastStale,
    Lfru, Lfu, LfuAged, LfuInCache, Lirs, LookAhead, Lru, PolicyKind, PolicyNeeds, RandomChoice, RouterMass, S3Fifo,
    Sieve, Slru, StaticBestSet, TwoQueue, WTinyLfu,
};
pub use policy::{EvictionPolicy, PoolShape};
pub use pool::{Partition, Pool};
pub use prefetch::{
    HistoryMatch, IssuedPrefetch, Markov, NextLayer, Oracle, Prediction, PrefetchCounts, PrefetchPlanner, Prefetcher,
    PrefetcherKind, PreviousToken, Routing,
};
pub use profile::ResidentProfile;
pub use request::{Request, RequestBuffer};
pub use requests::Requests;
pub use serving::{Demand, Lane, Serving, Step, for_each_pass, for_each_request, has_decoded};
pub use simulate::{Counts, MassCounts, PhaseCounts, Served, Simulation};
pub use sizes::ExpertSizes;
pub use sweep::{PolicySweep, PoolSweep, Sweep};
pub use time::{
    CostModel, HardwareProfile, Linear, ModelSize, Overlap, Pass, PhaseSpeed, Processor, Speed, Timeline, Transfer,
    WhileLoading,
};

/// The examples of the guides are tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../docs/policies.md")]
    struct Policies;
}
