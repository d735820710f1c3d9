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
//!     let policy = kind.build(pool.shape(), 2, Some(&future))?;
//!     let mut simulation = Simulation::new(pool.clone(), ExpertCache::new(policy, 4, 2, Oversize::Waves)?)?;
//!     simulation.run(&trace)?;
//!     Ok::<_, expert_cache::CacheError>(simulation.counts()[0].total().hits)
//! };
//! assert_eq!(hits(PolicyKind::Lru)?, 0);
//! assert_eq!(hits(PolicyKind::Belady)?, 1); // 2 replaces 1, and 0 is still there
//! # Ok::<(), expert_cache::CacheError>(())
//! ```

#![forbid(unsafe_code)]

mod advisor;
mod budget;
mod cache;
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
pub use error::{CacheError, Result};
pub use key::{ExpertKey, SlotId};
pub use misses::{Buddies, MissCost, MissPolicy};
pub use plan::{Eviction, Hit, Load, Plan, Skip};
pub use policies::{
    ActivationAware, AdaptiveReplacement, Belady, BeladyBypass, Clock, Fifo, Hysteresis, LayerLru, LeastStale, Lfru,
    Lfu, LfuAged, LfuInCache, Lirs, LookAhead, Lru, PolicyKind, PolicyNeeds, RandomChoice, RouterMass, S3Fifo, Sieve,
    Slru, StaticBestSet, TwoQueue, WTinyLfu,
};
pub use policy::{EvictionPolicy, PoolShape};
pub use pool::{Partition, Pool};
pub use prefetch::{
    HistoryMatch, Markov, NextLayer, Oracle, Prediction, Prefetcher, PrefetcherKind, PreviousToken, Routing,
};
pub use profile::ResidentProfile;
pub use request::{Request, RequestBuffer};
pub use requests::Requests;
pub use serving::{Demand, Lane, Serving, Step, for_each_pass, for_each_request, has_decoded};
pub use simulate::{Counts, MassCounts, PhaseCounts, PrefetchCounts, Prefetched, Prefetching, Served, Simulation};
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
