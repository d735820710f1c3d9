//! A device-resident expert cache that executes the plans of `expert-cache`.
//!
//! A model's MoE block hands its tokens and [`Routes`] to an [`ExpertBank`]. [`ResidentExperts`] keeps every expert on
//! the compute device; [`OffloadedExperts`] keeps a few in slots there and fetches the others from an
//! [`ExpertStore`] ([`HostStore`], [`MappedStore`]) as an `expert_cache` policy plans it. Both run the same arithmetic
//! in the same order, so their results are bit-identical.

mod bank;
mod counters;
mod dispatch;
mod error;
mod expert;
mod host;
mod mapped;
mod offloaded;
mod resident;
mod routes;
mod slots;
mod store;

pub use bank::ExpertBank;
pub use counters::{LayerCounters, PhaseCounters};
pub use error::{OffloadError, Result};
pub use expert::{ExpertShape, ExpertWeights};
pub use host::HostStore;
pub use mapped::MappedStore;
pub use offloaded::OffloadedExperts;
pub use resident::ResidentExperts;
pub use routes::Routes;
pub use store::ExpertStore;
