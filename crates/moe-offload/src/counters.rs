//! What a run did, per layer and phase.

use expert_cache::{Counts, PhaseCounts};
use moe_trace::Phase;
use serde::Serialize;

/// Counters of one layer in one phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PhaseCounters {
    /// Requests, hits, loads and bypasses of completed calls, counted as the simulator counts them.
    pub counts: Counts,
    /// Bytes copied into slots, by failed calls too.
    pub loaded_bytes: u64,
    /// Seconds spent fetching and copying.
    pub load_seconds: f64,
    /// Seconds spent computing resident experts, as far as the host sees it.
    pub compute_seconds: f64,
    /// Seconds spent serving bypassed experts on the host.
    pub bypass_seconds: f64,
}

/// Counters of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LayerCounters {
    /// Prefilled tokens.
    pub prefill: PhaseCounters,
    /// Decoded tokens.
    pub decode: PhaseCounters,
}

impl PhaseCounters {
    /// Adds other counters.
    pub fn merge(&mut self, other: &PhaseCounters) {
        self.counts.merge(&other.counts);
        self.loaded_bytes += other.loaded_bytes;
        self.load_seconds += other.load_seconds;
        self.compute_seconds += other.compute_seconds;
        self.bypass_seconds += other.bypass_seconds;
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
    }

    pub(crate) fn of_mut(&mut self, phase: Phase) -> &mut PhaseCounters {
        match phase {
            Phase::Prefill => &mut self.prefill,
            Phase::Decode => &mut self.decode,
        }
    }
}
