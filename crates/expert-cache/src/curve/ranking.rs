//! Priorities of experts, kept up to date while a sequence is served.

use super::Accesses;

/// A priority for every expert of a pool, the larger the longer it stays.
pub(super) trait Ranking {
    /// Whether a miss need not load. Then all experts of a token have the priorities that it leaves them before the first
    /// is served.
    const BYPASS: bool = false;

    /// Starts a sequence and returns a bound above all of its priorities (or the largest number).
    fn start(&mut self, accesses: &Accesses) -> u64;

    /// The experts whose priority rises by [`one_use`](Ranking::one_use) before the accesses of a token are served.
    #[inline(always)]
    fn rising<'a>(&mut self, _accesses: &'a Accesses, _token: usize) -> &'a [u32] {
        &[]
    }

    /// What a use to come adds to a priority.
    #[inline(always)]
    fn one_use(&self) -> u64 {
        0
    }

    /// The priority that access number `access` leaves to `key`.
    fn served(&mut self, access: u32, key: u32) -> u64;
}

/// A number of uses by expert, and priorities that order by it and then by last use.
///
/// ```text
/// bit 63 ........ shift ........ 0
///     |    uses     |  last use  |     shift: as many bits as the number of accesses has
/// ```
#[derive(Clone, Debug, Default)]
struct Uses {
    counts: Vec<u32>,
    shift: u32,
}

impl Uses {
    /// Starts a sequence of uses up to `most` and returns a bound above all priorities.
    fn start(&mut self, accesses: &Accesses, most: usize) -> u64 {
        self.counts.clear();
        self.counts.resize(accesses.pool(), 0);
        self.shift = usize::BITS - accesses.len().leading_zeros();
        // Both fit 32 bits, as the number of accesses does.
        (most.min(accesses.len()) as u64 + 1).saturating_mul(1 << self.shift)
    }

    #[inline(always)]
    fn pack(&self, key: u32, access: u32) -> u64 {
        u64::from(self.counts[key as usize]) << self.shift | u64::from(access)
    }
}

/// LFU: uses since the sequence began, then last use.
#[derive(Clone, Debug, Default)]
pub(super) struct Frequency(Uses);

impl Ranking for Frequency {
    fn start(&mut self, accesses: &Accesses) -> u64 {
        self.0.start(accesses, accesses.token_count())
    }

    #[inline(always)]
    fn served(&mut self, access: u32, key: u32) -> u64 {
        self.0.counts[key as usize] += 1;
        self.0.pack(key, access)
    }
}

/// Belady: minus the next use.
///
/// With bypass it is the optimum of the paper convention. Every stay of an expert from one use to its next is worth one hit
/// and takes one slot; of stays that overlap, keeping those that end first keeps the most (interval scheduling on `c`
/// machines), so no policy that judges a token on the state before it has more hits.
#[derive(Clone, Debug, Default)]
pub(super) struct NextUse<const BYPASS: bool> {
    /// For every expert its first use, while the sequence is started.
    next: Vec<u32>,
    /// For every access the priority that it leaves behind.
    after: Vec<u32>,
}

impl<const BYPASS: bool> Ranking for NextUse<BYPASS> {
    const BYPASS: bool = BYPASS;

    fn start(&mut self, accesses: &Accesses) -> u64 {
        // 0 is "never again". A next use at access `i` is `len - i`, so an earlier one ranks higher.
        self.next.clear();
        self.next.resize(accesses.pool(), 0);
        self.after.clear();
        self.after.resize(accesses.len(), 0);
        for (distance, (after, &key)) in (1u32..).zip(self.after.iter_mut().zip(accesses.keys()).rev()) {
            *after = std::mem::replace(&mut self.next[key as usize], distance);
        }
        accesses.len() as u64 + 1
    }

    #[inline(always)]
    fn served(&mut self, access: u32, _key: u32) -> u64 {
        u64::from(self.after[access as usize])
    }
}

/// SCH: uses in the look-ahead window, then last use.
#[derive(Clone, Debug)]
pub(super) struct WindowUses {
    uses: Uses,
    window: usize,
}

impl WindowUses {
    pub(super) fn new(window: usize) -> WindowUses {
        WindowUses { uses: Uses::default(), window }
    }
}

impl Ranking for WindowUses {
    fn start(&mut self, accesses: &Accesses) -> u64 {
        let bound = self.uses.start(accesses, accesses.token_count().min(self.window));
        for keys in accesses.tokens().take(self.window - 1) {
            keys.iter().for_each(|&key| self.uses.counts[key as usize] += 1);
        }
        bound
    }

    #[inline(always)]
    fn rising<'a>(&mut self, accesses: &'a Accesses, token: usize) -> &'a [u32] {
        let last = token.saturating_add(self.window - 1);
        if last >= accesses.token_count() {
            return &[];
        }
        let keys = accesses.token(last);
        keys.iter().for_each(|&key| self.uses.counts[key as usize] += 1);
        keys
    }

    #[inline(always)]
    fn one_use(&self) -> u64 {
        1 << self.uses.shift
    }

    #[inline(always)]
    fn served(&mut self, access: u32, key: u32) -> u64 {
        self.uses.counts[key as usize] -= 1;
        self.uses.pack(key, access)
    }
}
