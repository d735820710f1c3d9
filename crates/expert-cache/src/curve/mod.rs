//! Hit rates at every capacity in one pass, paper convention.
//!
//! The *paper convention* of arXiv 2505.16056 (sections 2.3 and C.1) counts as follows. A sequence starts with an empty
//! cache. Every access of a token is judged on the state *before* the token; then the token's experts are served one by
//! one, layer by layer, in rank order. A served expert that is absent is loaded, and if the cache is full the resident
//! expert of lowest priority is evicted. A curve is the mean over sequences of each sequence's hit rate.
//!
//! The engine convention, where the whole set of a token must be resident together, is the simulator's.
//!
//! ```
//! use expert_cache::curve::{ColdStart, CurveAccumulator, CurvePolicy};
//! use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};
//!
//! // One layer of 3 experts, top-1: A B A C A.
//! let geometry = Geometry::decoder(1, 3, 1)?;
//! let sequence = SequenceBuf::from_experts(&geometry, vec![0, 1, 0, 2, 0], Phase::Decode)?;
//! let mut lru = CurveAccumulator::new(&geometry, &[LayerId(0)], CurvePolicy::Lru, ColdStart::Miss)?;
//! lru.update(&sequence.view(&geometry, 0)?)?;
//! // One slot never hits; two slots keep A, whose second and third use hit.
//! assert_eq!(lru.finish().hit_rates, [0.0, 0.4, 0.4]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod accesses;
mod accumulator;
mod instructions;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod lanes_avx2;
#[cfg(target_arch = "x86_64")]
mod lanes_avx512;
mod last_uses;
#[doc(hidden)]
pub mod naive;
mod pass;
mod policy;
mod ranking;
mod recency;
mod recency_matrix;
mod stack;
#[cfg(target_arch = "x86_64")]
mod stack_simd;
#[cfg(target_arch = "x86_64")]
mod stack_wide;

pub use accesses::Accesses;
pub use accumulator::{CurveAccumulator, HitCurve};
pub use policy::{ColdStart, CurvePolicy};
