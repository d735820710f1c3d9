//! LRU depths of a pool of at most `64 * W` experts, as a bit matrix.

/// For every expert the set of experts used since its own last use; the size of that set is its LRU depth.
///
/// ```text
///              bit 63 ... 2 1 0
/// since[0]          0 ... 1 0 0    expert 2 was used after expert 0: depth 1
/// since[1]          0 ... 1 0 1    experts 0 and 2 after expert 1:   depth 2
/// since[2]          0 ... 0 0 0    the last one used:                depth 0
/// ```
///
/// A set is in two parts: the experts served later in the token of the last use, and those of later tokens. A token ORs
/// its own set into the rows of the second part (which vectorizes) and an access counts the bits of one set, whatever the
/// depth. With rows reset in the same stroke, no row is written word by word and then read as a vector, which stalls.
///
/// # Complexity
/// `O(64 W^2)` words a token and `O(W)` an access; memory `O(64 W^2)` words.
#[derive(Clone, Debug)]
pub(super) struct RecencyMatrix<const W: usize> {
    /// By later tokens, `[word of the expert][word of the set]`.
    since: [[Rows; W]; W],
    /// By its own token, `[word of the expert][bit of the expert]`.
    beside: [[[u64; W]; 64]; W],
    seen: [u64; W],
}

/// A word for each of 64 experts, in whole cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Rows([u64; 64]);

impl<const W: usize> RecencyMatrix<W> {
    /// The largest pool.
    pub(super) const EXPERTS: usize = 64 * W;

    pub(super) fn new() -> RecencyMatrix<W> {
        RecencyMatrix { since: [[Rows([0; 64]); W]; W], beside: [[[0; W]; 64]; W], seen: [0; W] }
    }

    #[inline(always)]
    pub(super) fn reset(&mut self) {
        // What a row holds before its expert is seen is never read.
        self.seen = [0; W];
    }

    /// Serves a token: calls `seen(depth)` or `new()` for every access, all judged before.
    #[inline(always)]
    pub(super) fn serve(&mut self, keys: &[u32], mut seen: impl FnMut(usize), mut new: impl FnMut()) {
        let mut token = [0u64; W];
        // From the last one served, so that the experts met are those used later.
        for &key in keys.iter().rev() {
            let (word, bit) = (key as usize / 64 % W, key as usize % 64);
            let beside = std::mem::replace(&mut self.beside[word][bit], token);
            let words = self.since[word].iter().zip(beside);
            let depth: u32 = words.map(|(since, beside)| (since.0[bit] | beside).count_ones()).sum();
            if self.seen[word] >> bit & 1 == 0 {
                new();
            } else {
                seen(depth as usize);
            }
            // No index, so that the words stay in registers.
            for (index, later) in token.iter_mut().enumerate() {
                *later |= u64::from(index == word) << bit;
            }
        }
        for (rows, used) in self.since.iter_mut().zip(token) {
            let unused = !used;
            for (rows, token) in rows.iter_mut().zip(token) {
                for (bit, row) in rows.0.iter_mut().enumerate() {
                    *row = if unused >> bit & 1 == 0 { 0 } else { *row | token };
                }
            }
        }
        self.seen.iter_mut().zip(token).for_each(|(seen, token)| *seen |= token);
    }
}
