//! Counts of prefetches.

use serde::{Deserialize, Serialize};

/// Counts of the outcomes of prefetches, defined as in `ChampSim`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchCounts {
    /// Experts prefetched.
    pub issued: u64,
    /// Prefetched experts that were used, and had come in time.
    pub useful: u64,
    /// Prefetched experts that were used, but had been issued too late.
    pub late: u64,
    /// Prefetched experts that were evicted unused.
    pub useless: u64,
    /// Misses of experts that a prefetch had evicted.
    pub polluting: u64,
    /// What was prefetched, in bytes, or in experts where the cache counts slots.
    pub issued_bytes: u64,
    /// What was evicted unused, in bytes, or in experts where the cache counts slots.
    pub useless_bytes: u64,
}

impl PrefetchCounts {
    /// Adds other counts.
    pub fn merge(&mut self, other: &PrefetchCounts) {
        self.issued += other.issued;
        self.useful += other.useful;
        self.late += other.late;
        self.useless += other.useless;
        self.polluting += other.polluting;
        self.issued_bytes += other.issued_bytes;
        self.useless_bytes += other.useless_bytes;
    }

    /// Prefetched experts that are still resident and were not used yet.
    pub fn pending(&self) -> u64 {
        self.issued - self.useful - self.late - self.useless
    }

    /// Share of prefetches with a known end that were used, in time or late; 0 without such prefetches.
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn accuracy(&self) -> f64 {
        let used = self.useful + self.late;
        if used + self.useless == 0 { 0.0 } else { used as f64 / (used + self.useless) as f64 }
    }
}
