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
mod bit_queue;
mod bootstrap;
mod by_domain;
pub mod by_policy;
mod coactivation;
mod correlation;
mod curve_resamples;
mod curves;
mod error;
mod figures;
mod group_row;
mod groups;
mod histogram;
mod layer_snapshot;
mod live_sequence;
mod load;
mod load_resamples;
mod misses;
mod monitor;
mod monitor_epoch;
mod monitor_options;
mod nan;
mod null_router;
#[doc(hidden)]
pub mod oracle;
mod position;
mod prefetch;
mod priority_cache;
mod random;
mod reference_counts;
mod reference_routing;
mod report;
mod resampled;
mod saturation;
mod selection;
mod sequence_key;
mod serialized;
mod specialization;
mod srp;
mod srp_report;
mod srp_resamples;
mod threshold;
mod threshold_resamples;
mod trace_intervals;
mod trace_metrics;
mod trace_resamples;
mod use_counts;
mod vocabulary;

pub use accumulate::{Accumulator, accumulate};
pub use bootstrap::Bootstrap;
pub use by_domain::{ByDomain, DomainSrp};
pub use coactivation::Coactivation;
pub use correlation::{ModelCorrelations, correlate, correlation_matrix, pearson};
pub use curves::Curves;
pub use error::{MetricError, Result};
pub use expert_cache::Convention;
pub use expert_cache::curve::{ColdStart, CurvePolicy, HitCurve};
pub use figures::Figures;
pub use groups::Merge;
pub use layer_snapshot::LayerSnapshot;
pub use load::{LayerLoad, LoadBalance};
pub use misses::{MissDecomposition, decompose_misses, relative_to, static_curve};
pub use monitor::Monitor;
pub use monitor_options::MonitorOptions;
pub use position::{PositionSrp, StartSrp};
pub use prefetch::{PrefetchDecomposition, PrefetchEffect};
pub use reference_counts::RoutingAgreement;
pub use reference_routing::{LayerAgreement, ReferenceRouting};
pub use report::{ExpertReport, HitRates, LayerReport, MetricsReport, ModelReport, PoolReport};
pub use resampled::{Intervals, Resampled};
pub use saturation::Saturation;
pub use specialization::{DomainLoad, domain_specialization};
pub use srp::Srp;
pub use srp_report::{LayerSrp, SrpReport};
pub use threshold::{SrpValue, srp_lower_bound};
pub use trace_intervals::{MetricsIntervals, TraceIntervals};
pub use trace_metrics::{MetricsOptions, TraceMetrics};
pub use vocabulary::{ExpertVocabulary, TokenShare, Vocabulary, VocabularyToken};

/// The examples of the guides are tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../docs/map-reduce.md")]
    struct MapReduce;
    #[doc = include_str!("../../../docs/metrics.md")]
    struct Metrics;
}
