//! Everything that a bank has counted and timed, for people and for JSON.

use serde::{Deserialize, Serialize};

use super::counters::{HostCounters, PhaseCounters, PrefetchCounters, ReadAheadCounters};
use super::latency::Latency;

/// A layer in one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// Counts, bytes and seconds.
    #[serde(flatten)]
    pub counters: PhaseCounters,
    /// Hits an access.
    pub hit_rate: f64,
    /// Single loads that calls waited for.
    pub load: Latency,
    /// What calls stood still, each in all.
    pub stall: Latency,
}

/// A layer of a [`HostCache`](crate::HostCache).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    /// Counts, bytes and seconds.
    #[serde(flatten)]
    pub counters: HostCounters,
    /// Single loads from the store below, failed ones too; not what was bypassed.
    pub load: Latency,
}

/// A [`HostCache`](crate::HostCache) since it was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostReports {
    /// Each layer.
    pub layers: Vec<HostReport>,
    /// All layers.
    pub total: HostReport,
}

/// A layer.
///
/// Where an expert was found: hits were in slots; loads and bypasses came from the store, that is where it is a
/// [`HostCache`](crate::HostCache), in its hits from host memory and otherwise from the disk below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Prefilled tokens.
    pub prefill: PhaseReport,
    /// Decoded tokens.
    pub decode: PhaseReport,
    /// Experts loaded before they were wanted.
    pub prefetch: PrefetchCounters,
    /// Single loads of those.
    pub prefetch_load: Latency,
    /// Prefetches that this layer's calls evicted before anybody had begun to load them.
    pub cancelled: u64,
    /// Experts of this layer wished to be read ahead.
    pub read_ahead: ReadAheadCounters,
    /// What a cache in host memory did below the slots, of this bank and of others that share it.
    pub host: Option<HostReport>,
}

/// A bank since it was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BankReport {
    /// Slots of each pool.
    pub slots: Vec<usize>,
    /// Bytes of all slots.
    pub slot_bytes: u64,
    /// Bytes of all experts.
    pub expert_bytes: u64,
    /// Each layer.
    pub layers: Vec<LayerReport>,
    /// All layers.
    pub total: LayerReport,
}
