//! Local routing consistency: SRP, SCH and load balance over routing traces.
//!
//! How consistent is the routing of a Mixture-of-Experts model from token to token, and what would a cache of expert
//! slots make of it? [`Srp`] measures how well one set of experts serves a whole window of tokens, [`Curves`] gives the
//! hit rate of LRU, LFU, Belady and look-ahead (SCH) caches at every capacity, [`LoadBalance`] how evenly experts are
//! used. [`TraceMetrics`] computes all of them in one pass over a trace, [`TraceIntervals`] with confidence intervals.
//! [`ByDomain`] tells text domains apart and [`PositionSrp`] the places in a text; [`Vocabulary`], [`Coactivation`],
//! [`Saturation`] and [`ReferenceRouting`] look for what experts have to do with words, with each other, with an earlier
//! checkpoint and with domains; [`Monitor`] watches a running model. `docs/metrics.md` is the guide.
//!
//! Every accumulator counts in integers, so results depend neither on the order of sequences nor on how they are split
//! over accumulators; [`accumulate`] folds a whole trace in parallel with the same result for any number of threads.
//! Accumulators are serializable, so a corpus can be folded over processes, too: `docs/map-reduce.md` shows how.
//!
//! ```
//! use lrc_metrics::{CurvePolicy, MetricsOptions, TraceMetrics, accumulate};
//! use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
//!
//! // One layer of 3 experts, top-1: A A B A.
//! let geometry = Geometry::decoder(1, 3, 1)?;
//! let mut trace = MemoryTrace::new(geometry.clone());
//! trace.push(SequenceBuf::from_experts(&geometry, vec![0, 0, 1, 0], Phase::Decode)?)?;
//!
//! let options = MetricsOptions { windows: vec![2], ..MetricsOptions::default() };
//! let report = accumulate(&trace, &TraceMetrics::new(&geometry, &options)?, &|_done| {})?.finish()?;
//! // Windows of two tokens: AA, AB, BA. Predicting an expert for a window where it is used at least once is right for
//! // 6 of the 6 uses and selects 5 experts for 2 tokens each: F1 = 2 * 6 / (2 * 5 + 6).
//! assert_eq!(report.model.srp[&2].srp, 0.75);
//! // The third token misses in an LRU cache of one slot, so does the fourth; the first touch is free.
//! assert_eq!(report.layers[0].curves[&CurvePolicy::Lru], [0.5, 1.0, 1.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod accumulate;
mod correlation;
mod domains;
mod error;
mod experts;
mod intervals;
mod misses;
mod monitor;
#[doc(hidden)]
pub mod oracle;
mod random;
mod srp;
mod trace;

pub use accumulate::{Accumulator, Merge, accumulate};
pub use correlation::{ModelCorrelations, correlate, correlation_matrix, pearson};
pub use domains::{
    ByDomain, DomainLoad, DomainSrp, LayerAgreement, ReferenceRouting, RoutingAgreement, domain_specialization,
};
pub use error::{MetricError, Result};
pub use expert_cache::Convention;
pub use expert_cache::curve::{ColdStart, CurvePolicy, HitCurve};
pub use experts::{
    Coactivation, ExpertVocabulary, LayerLoad, LoadBalance, Saturation, TokenShare, Vocabulary, VocabularyToken,
};
pub use intervals::{Bootstrap, Figures, Intervals, MetricsIntervals, Resampled, TraceIntervals};
pub use misses::{
    MissDecomposition, PrefetchDecomposition, PrefetchEffect, decompose_misses, relative_to, static_curve,
};
pub use monitor::{LayerSnapshot, Monitor, MonitorOptions};
pub use srp::{LayerSrp, PositionSrp, Srp, SrpReport, SrpValue, StartSrp, srp_lower_bound};
pub use trace::{
    Curves, ExpertReport, HitRates, LayerReport, MetricsOptions, MetricsReport, ModelReport, PoolReport, TraceMetrics,
    by_policy,
};

/// The examples of the guides are tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../docs/map-reduce.md")]
    struct MapReduce;
    #[doc = include_str!("../../../docs/metrics.md")]
    struct Metrics;
}
