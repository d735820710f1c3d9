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
/// A set is in two parts: the experts served later in the token of the last use, and those of later tokens. A token ORs
/// its own set into the rows of the second part (which vectorizes) and an access counts the bits of one set, whatever the
/// depth. With rows reset in the same stroke, no row is written word by word and then read as a vector, which stalls.
///
/// # Complexity
/// 64 words a token and one an access.
#[derive(Clone, Debug)]
pub(super) struct RecencyMatrix {
    /// By later tokens.
    since: Rows,
    /// By its own token.
    beside: [u64; 64],
    seen: u64,
}

/// A word for each of 64 experts, in whole cache lines.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Rows([u64; 64]);

impl RecencyMatrix {
    /// The largest pool.
    pub(super) const EXPERTS: usize = 64;

    pub(super) fn new() -> RecencyMatrix {
        RecencyMatrix { since: Rows([0; 64]), beside: [0; 64], seen: 0 }
    }

    #[inline(always)]
    pub(super) fn reset(&mut self) {
        // What a row holds before its expert is seen is never read.
        self.seen = 0;
    }

    /// Serves a token: calls `seen(depth)` or `new()` for every access, all judged before.
    #[inline(always)]
    pub(super) fn serve(&mut self, keys: &[u32], mut seen: impl FnMut(usize), mut new: impl FnMut()) {
        let mut token = 0u64;
        // From the last one served, so that the experts met are those used later.
        for &key in keys.iter().rev() {
            let bit = key as usize % 64;
            let beside = std::mem::replace(&mut self.beside[bit], token);
            if self.seen >> bit & 1 == 0 {
                new();
            } else {
                seen((self.since.0[bit] | beside).count_ones() as usize);
            }
            token |= 1 << bit;
        }
        let unused = !token;
        for (bit, row) in self.since.0.iter_mut().enumerate() {
            *row = if unused >> bit & 1 == 0 { 0 } else { *row | token };
        }
        self.seen |= token;
    }
}
