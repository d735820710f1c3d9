//! What plans amount to.

use moe_trace::Phase;
use serde::{Deserialize, Serialize};

use crate::Plan;

/// What became of the experts that requests wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Number of requests.
    pub requests: u64,
    /// Experts found resident.
    pub hits: u64,
    /// Experts loaded.
    pub loads: u64,
    /// Experts served without being resident.
    pub bypasses: u64,
    /// Experts left out or replaced, where a simulation tries that.
    pub skips: u64,
    /// Experts that left for those that were loaded.
    pub evictions: u64,
}

impl Counts {
    /// Counts the plan of one request.
    pub fn add(&mut self, plan: &Plan) {
        self.requests += 1;
        self.hits += plan.hits().len() as u64;
        self.loads += plan.loads().len() as u64;
        self.bypasses += plan.bypasses().len() as u64;
        self.skips += plan.skips().len() as u64;
        self.evictions += plan.evictions().len() as u64;
    }

    /// Adds other counts.
    pub fn merge(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.hits += other.hits;
        self.loads += other.loads;
        self.bypasses += other.bypasses;
        self.skips += other.skips;
        self.evictions += other.evictions;
    }

    /// Experts wanted: hits, loads, bypasses and skips.
    pub fn accesses(&self) -> u64 {
        self.hits + self.loads + self.bypasses + self.skips
    }

    /// Hits an access; 0 without accesses.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn hit_rate(&self) -> f64 {
        if self.accesses() == 0 { 0.0 } else { self.hits as f64 / self.accesses() as f64 }
    }
}

/// Counts, prefill and decode apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseCounts {
    /// Requests of prefilled tokens.
    pub prefill: Counts,
    /// Requests of decoded tokens.
    pub decode: Counts,
}

impl PhaseCounts {
    /// Counts of a phase.
    pub fn of(&self, phase: Phase) -> &Counts {
        match phase {
            Phase::Prefill => &self.prefill,
            Phase::Decode => &self.decode,
        }
    }

    /// Counts of a phase, to be changed.
    pub fn of_mut(&mut self, phase: Phase) -> &mut Counts {
        match phase {
            Phase::Prefill => &mut self.prefill,
            Phase::Decode => &mut self.decode,
        }
    }

    /// Adds other counts.
    pub fn merge(&mut self, other: &PhaseCounts) {
        self.prefill.merge(&other.prefill);
        self.decode.merge(&other.decode);
    }

    /// Both phases together.
    pub fn total(&self) -> Counts {
        let mut total = self.prefill;
        total.merge(&self.decode);
        total
    }
}
