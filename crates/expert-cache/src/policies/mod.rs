//! One file a policy; `suite.rs` holds the tests that all of them pass.

mod activation_aware;
mod arc;
mod belady;
mod belady_bypass;
mod clock;
mod decayed;
mod fifo;
mod heap;
mod hysteresis;
mod kind;
mod layer_lru;
mod least_stale;
mod lfru;
mod lfu;
mod lfu_aged;
mod lfu_in_cache;
mod lirs;
mod list;
mod look_ahead;
mod lru;
mod next_use;
mod random;
#[cfg(test)]
mod resident_sets;
mod router_mass;
mod s3_fifo;
mod sieve;
mod slru;
mod static_best_set;
#[cfg(test)]
mod suite;
#[cfg(test)]
mod twins;
mod two_queue;
mod w_tiny_lfu;

pub use activation_aware::ActivationAware;
pub use arc::AdaptiveReplacement;
pub use belady::Belady;
pub use belady_bypass::BeladyBypass;
pub use clock::Clock;
pub use fifo::Fifo;
pub use hysteresis::Hysteresis;
pub use kind::{PolicyKind, PolicyNeeds};
pub use layer_lru::LayerLru;
pub use least_stale::LeastStale;
pub use lfru::Lfru;
pub use lfu::Lfu;
pub use lfu_aged::LfuAged;
pub use lfu_in_cache::LfuInCache;
pub use lirs::Lirs;
pub use look_ahead::LookAhead;
pub use lru::Lru;
pub use random::RandomChoice;
pub use router_mass::RouterMass;
pub use s3_fifo::S3Fifo;
pub use sieve::Sieve;
pub use slru::Slru;
pub use static_best_set::StaticBestSet;
pub use two_queue::TwoQueue;
pub use w_tiny_lfu::WTinyLfu;
