//! Priorities of experts, kept up to date while a sequence is served.

use super::Accesses;

/// A priority for every expert of a pool, the larger the longer it stays.
pub(super) trait Ranking {
    /// Starts a sequence.
    fn start(&mut self, accesses: &Accesses);

    /// Called before the accesses of a token are served.
    #[inline]
    fn before_token(&mut self, _accesses: &Accesses, _token: usize) {}

    /// Called when access number `access` has served `key`.
    fn served(&mut self, access: u32, key: u32);

    /// The priorities, `[pool]`.
    fn ranks(&self) -> &[u64];
}

/// `count | time of last use`, most significant first: orders by count, then by recency.
#[inline]
fn pack(count: u64, time: u32) -> u64 {
    count << 32 | u64::from(time)
}

const ONE_USE: u64 = 1 << 32;

fn reset(ranks: &mut Vec<u64>, pool: usize) {
    ranks.clear();
    ranks.resize(pool, 0);
}

/// LFU: uses since the sequence began, then last use.
#[derive(Clone, Debug, Default)]
pub(super) struct Frequency {
    ranks: Vec<u64>,
}

impl Ranking for Frequency {
    fn start(&mut self, accesses: &Accesses) {
        reset(&mut self.ranks, accesses.pool());
    }

    #[inline]
    fn served(&mut self, access: u32, key: u32) {
        let rank = &mut self.ranks[key as usize];
        *rank = pack((*rank >> 32) + 1, access);
    }

    fn ranks(&self) -> &[u64] {
        &self.ranks
    }
}

/// Belady: minus the next use.
#[derive(Clone, Debug, Default)]
pub(super) struct NextUse {
    ranks: Vec<u64>,
    /// For every access the priority that it leaves behind.
    after: Vec<u64>,
}

impl Ranking for NextUse {
    fn start(&mut self, accesses: &Accesses) {
        // 0 is "never again". A next use at access `i` is `len - i`, so an earlier one ranks higher.
        reset(&mut self.ranks, accesses.pool());
        self.after.clear();
        self.after.resize(accesses.len(), 0);
        for (distance, (after, &key)) in (1u64..).zip(self.after.iter_mut().zip(accesses.keys()).rev()) {
            *after = std::mem::replace(&mut self.ranks[key as usize], distance);
        }
    }

    #[inline]
    fn served(&mut self, access: u32, key: u32) {
        self.ranks[key as usize] = self.after[access as usize];
    }

    fn ranks(&self) -> &[u64] {
        &self.ranks
    }
}

/// SCH: uses in the look-ahead window, then last use.
#[derive(Clone, Debug)]
pub(super) struct WindowUses {
    ranks: Vec<u64>,
    window: usize,
}

impl WindowUses {
    pub(super) fn new(window: usize) -> WindowUses {
        WindowUses { ranks: Vec::new(), window }
    }

    #[inline]
    fn enter(&mut self, accesses: &Accesses, token: usize) {
        for &key in accesses.token(token) {
            self.ranks[key as usize] += ONE_USE;
        }
    }
}

impl Ranking for WindowUses {
    fn start(&mut self, accesses: &Accesses) {
        reset(&mut self.ranks, accesses.pool());
        for token in 0..accesses.token_count().min(self.window - 1) {
            self.enter(accesses, token);
        }
    }

    #[inline]
    fn before_token(&mut self, accesses: &Accesses, token: usize) {
        let last = token.saturating_add(self.window - 1);
        if last < accesses.token_count() {
            self.enter(accesses, last);
        }
    }

    #[inline]
    fn served(&mut self, access: u32, key: u32) {
        let rank = &mut self.ranks[key as usize];
        *rank = pack((*rank >> 32) - 1, access);
    }

    fn ranks(&self) -> &[u64] {
        &self.ranks
    }
}
