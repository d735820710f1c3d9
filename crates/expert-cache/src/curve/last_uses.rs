//! LRU depths of a pool of any size, as a bitmap over time.

/// The number of times that the bitmap has, as a multiple of the pool.
const TIMES: usize = 4;
const NEVER: u32 = u32::MAX;

/// The times at which experts were last used, one bit each; the LRU depth of an expert is the number of later ones.
///
/// ```text
/// time               7 6 5 4 3 2 1 0
/// bitmap             0 0 1 1 0 1 0 0     three experts, last used at times 2, 4, 5: depths 2, 1, 0
/// ```
///
/// When times run out they are numbered anew without gaps.
///
/// # Complexity
/// A token counts the bits of every word once, `O(pool / 64)`; an access then costs `O(1)`. Times run out once in
/// `2 * pool` accesses or more, and numbering them anew costs `O(pool)`. Memory is `O(pool)`.
#[derive(Clone, Debug, Default)]
pub(super) struct LastUses {
    times: Vec<u64>,
    /// Number of bits in the words after each word, when a token is judged.
    later: Vec<u32>,
    /// By expert.
    last_use: Vec<u32>,
    now: u32,
    distinct: u32,
}

impl LastUses {
    /// Starts a sequence of `accesses` accesses, at most `u32::MAX`.
    #[inline(always)]
    pub(super) fn reset(&mut self, pool: usize, accesses: usize) {
        let words = (TIMES * pool).min(accesses).div_ceil(64);
        self.times.clear();
        self.times.resize(words, 0);
        self.later.clear();
        self.later.resize(words, 0);
        self.last_use.clear();
        self.last_use.resize(pool, NEVER);
        (self.now, self.distinct) = (0, 0);
    }

    /// Serves a token: calls `seen(depth)` or `new()` for every access, all judged before.
    #[inline(always)]
    pub(super) fn serve(&mut self, keys: &[u32], mut seen: impl FnMut(usize), mut new: impl FnMut()) {
        self.count();
        if self.now as usize + keys.len() > 64 * self.times.len() {
            self.renumber();
            self.count();
        }
        for &key in keys {
            match self.last_use[key as usize] {
                NEVER => new(),
                time => seen(self.depth(time) as usize),
            }
        }
        for &key in keys {
            let time = std::mem::replace(&mut self.last_use[key as usize], self.now);
            if time == NEVER {
                self.distinct += 1;
            } else {
                self.times[(time / 64) as usize] &= !(1 << (time % 64));
            }
            self.times[(self.now / 64) as usize] |= 1 << (self.now % 64);
            self.now += 1;
        }
    }

    #[inline(always)]
    fn count(&mut self) {
        let mut bits = 0;
        for (later, times) in self.later.iter_mut().zip(&self.times).rev() {
            *later = bits;
            bits += times.count_ones();
        }
    }

    /// Number of experts last used after a time, when the bits were counted.
    #[inline(always)]
    fn depth(&self, time: u32) -> u32 {
        let word = (time / 64) as usize;
        self.later[word] + (self.times[word] >> (time % 64) >> 1).count_ones()
    }

    #[cold]
    fn renumber(&mut self) {
        for expert in 0..self.last_use.len() {
            let time = self.last_use[expert];
            if time != NEVER {
                self.last_use[expert] = self.distinct - 1 - self.depth(time);
            }
        }
        self.now = self.distinct;
        let mut left = self.distinct;
        for times in &mut self.times {
            *times = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
            left = left.saturating_sub(64);
        }
    }
}
