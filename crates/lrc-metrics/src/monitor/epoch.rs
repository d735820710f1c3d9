//! What was counted during a number of tokens of one layer.

/// Counts of one layer.
#[derive(Clone, Debug)]
pub(super) struct Epoch {
    pub(super) tokens: u64,
    pub(super) windows: u64,
    /// Windows in which an expert has `f` uses, all experts pooled, `[window + 1]`.
    pub(super) counts: Vec<u64>,
    /// Uses of each expert, `[experts]`.
    pub(super) uses: Vec<u64>,
    /// Accesses that the caches have served, and the hits among them.
    pub(super) accesses: u64,
    pub(super) lru_hits: u64,
    pub(super) sch_hits: u64,
}

impl Epoch {
    pub(super) fn new(window: usize, experts: usize) -> Epoch {
        Epoch {
            tokens: 0,
            windows: 0,
            counts: vec![0; window + 1],
            uses: vec![0; experts],
            accesses: 0,
            lru_hits: 0,
            sch_hits: 0,
        }
    }

    pub(super) fn merge(&mut self, other: &Epoch) {
        self.tokens += other.tokens;
        self.windows += other.windows;
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, more)| *sum += more);
        self.uses.iter_mut().zip(&other.uses).for_each(|(sum, more)| *sum += more);
        self.accesses += other.accesses;
        self.lru_hits += other.lru_hits;
        self.sch_hits += other.sch_hits;
    }
}
