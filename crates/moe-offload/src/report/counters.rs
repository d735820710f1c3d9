//! What a run did, per layer and phase.

use expert_cache::{Counts, PhaseCounts, PrefetchCounts};
use serde::{Deserialize, Serialize};

/// Counters of one layer in one phase.
///
/// Hits were on the device, loads came from the store, bypasses stayed on the host; which of those a
/// [`HostCache`](crate::HostCache) had in host memory and which came from disk, its [counters](crate::HostCounters) tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseCounters {
    /// Requests, hits, loads and bypasses of completed calls, counted as the simulator counts them.
    pub counts: Counts,
    /// Bytes copied into slots for calls that waited, by failed calls too.
    pub loaded_bytes: u64,
    /// Hits that were loaded again, for an earlier load had failed.
    pub reloads: u64,
    /// Loads that failed.
    pub failed_loads: u64,
    /// Calls that failed.
    pub failed_calls: u64,
    /// Seconds of loads, of all threads together.
    pub load_seconds: f64,
    /// Seconds that calls had nothing to compute, for they loaded experts or waited for them.
    pub stall_seconds: f64,
    /// Seconds spent computing resident experts, as far as the host sees it.
    pub compute_seconds: f64,
    /// Seconds spent serving bypassed experts on the host.
    pub bypass_seconds: f64,
}

/// Counters of the prefetches of one layer's experts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PrefetchCounters {
    /// What became of them, counted as the simulator counts it; late are those that a call waited for.
    pub counts: PrefetchCounts,
    /// Bytes copied into slots.
    pub loaded_bytes: u64,
    /// Seconds of loads, of all threads together.
    pub load_seconds: f64,
    /// Loads that failed; an expert that is wanted all the same is loaded again.
    pub failed_loads: u64,
}

/// Counters of the experts of one layer that a bank wished to be read ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadAheadCounters {
    /// Wishes.
    pub issued: u64,
    /// Of those, the ones that nobody took up, for the queue was full.
    pub dropped: u64,
}

/// Counters of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerCounters {
    /// Prefilled tokens.
    pub prefill: PhaseCounters,
    /// Decoded tokens.
    pub decode: PhaseCounters,
    /// Experts loaded before they were wanted.
    pub prefetch: PrefetchCounters,
    /// Prefetches that this layer's calls evicted before anybody had begun to load them.
    pub cancelled: u64,
}

/// What a [`HostCache`](crate::HostCache) did for the experts of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostCounters {
    /// Experts that were in host memory when they were wanted, or on their way there.
    pub hits: u64,
    /// Bytes of those.
    pub hit_bytes: u64,
    /// Experts that were brought from the store below.
    pub loads: u64,
    /// Of those, the ones that were read ahead: nobody had wanted them when the load began.
    pub ahead: u64,
    /// Experts that the policy declined to keep: they were used from the store below.
    pub bypasses: u64,
    /// Bytes that came from the store below.
    pub loaded_bytes: u64,
    /// Loads that failed.
    pub failed_loads: u64,
    /// Seconds of loads, of all threads together.
    pub load_seconds: f64,
}

impl PhaseCounters {
    /// Adds other counters.
    pub fn merge(&mut self, other: &PhaseCounters) {
        self.counts.merge(&other.counts);
        self.loaded_bytes += other.loaded_bytes;
        self.reloads += other.reloads;
        self.failed_loads += other.failed_loads;
        self.failed_calls += other.failed_calls;
        self.load_seconds += other.load_seconds;
        self.stall_seconds += other.stall_seconds;
        self.compute_seconds += other.compute_seconds;
        self.bypass_seconds += other.bypass_seconds;
    }
}

impl PrefetchCounters {
    /// Adds other counters.
    pub fn merge(&mut self, other: &PrefetchCounters) {
        self.counts.merge(&other.counts);
        self.loaded_bytes += other.loaded_bytes;
        self.load_seconds += other.load_seconds;
        self.failed_loads += other.failed_loads;
    }
}

impl HostCounters {
    /// Experts in host memory an expert that was wanted; 0 if none was.
    ///
    /// # Formula
    /// `hits / (hits + bypasses + loads - ahead)`
    ///
    /// ```
    /// use moe_offload::HostCounters;
    ///
    /// let counters = HostCounters { hits: 3, loads: 4, ahead: 3, ..HostCounters::default() };
    /// assert_eq!(counters.hit_rate(), 0.75);
    /// ```
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn hit_rate(&self) -> f64 {
        let wanted = self.hits + self.bypasses + self.loads.saturating_sub(self.ahead);
        self.hits as f64 / wanted.max(1) as f64
    }

    /// Adds other counters.
    pub fn merge(&mut self, other: &HostCounters) {
        self.hits += other.hits;
        self.hit_bytes += other.hit_bytes;
        self.loads += other.loads;
        self.ahead += other.ahead;
        self.bypasses += other.bypasses;
        self.loaded_bytes += other.loaded_bytes;
        self.failed_loads += other.failed_loads;
        self.load_seconds += other.load_seconds;
    }
}

impl ReadAheadCounters {
    /// Adds other counters.
    pub fn merge(&mut self, other: &ReadAheadCounters) {
        self.issued += other.issued;
        self.dropped += other.dropped;
    }
}

impl LayerCounters {
    /// The counts alone, to compare with a simulation.
    pub fn counts(&self) -> PhaseCounts {
        PhaseCounts { prefill: self.prefill.counts, decode: self.decode.counts }
    }

    /// Both phases together.
    pub fn total(&self) -> PhaseCounters {
        let mut total = self.prefill;
        total.merge(&self.decode);
        total
    }

    /// Adds other counters.
    pub fn merge(&mut self, other: &LayerCounters) {
        self.prefill.merge(&other.prefill);
        self.decode.merge(&other.decode);
        self.prefetch.merge(&other.prefetch);
        self.cancelled += other.cancelled;
    }
}
