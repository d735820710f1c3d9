//! LRU depths of a pool of at most 64 experts, as a bit matrix.

/// For every expert the set of experts used since its own last use; the size of that set is its LRU depth.
///
/// ```text
///              bit 63 ... 2 1 0
/// since[0]          0 ... 1 0 0    expert 2 was used after expert 0: depth 1
/// since[1]          0 ... 1 0 1    experts 0 and 2 after expert 1:   depth 2
/// since[2]          0 ... 0 0 0    the last one used:                depth 0
/// ```
///
/// A token costs one OR over 64 words (which vectorizes) and one popcount an access, whatever the depths.
#[derive(Clone, Debug)]
pub(super) struct RecencyMatrix {
    since: [u64; RecencyMatrix::EXPERTS],
    seen: u64,
}

impl RecencyMatrix {
    /// The largest pool.
    pub(super) const EXPERTS: usize = 64;

    pub(super) fn new() -> RecencyMatrix {
        RecencyMatrix { since: [0; RecencyMatrix::EXPERTS], seen: 0 }
    }

    pub(super) fn reset(&mut self) {
        // What a row holds before its expert is seen is never read.
        self.seen = 0;
    }

    /// Serves a token: calls `seen(depth)` or `new(distinct experts seen before)` for every access, all judged before.
    #[inline]
    pub(super) fn serve(&mut self, keys: &[u32], mut seen: impl FnMut(usize), mut new: impl FnMut(usize)) {
        let mut token = 0u64;
        for &key in keys {
            let bit = 1 << key;
            if self.seen & bit == 0 {
                new((self.seen | token).count_ones() as usize);
            } else {
                seen(self.since[key as usize].count_ones() as usize);
            }
            token |= bit;
        }
        for row in &mut self.since {
            *row |= token;
        }
        self.seen |= token;
        let mut later = token;
        for &key in keys {
            later &= !(1 << key);
            self.since[key as usize] = later;
        }
    }
}
