//! LRU depths of a pool of at most 256 experts, each in a byte.

/// For every expert its LRU depth: the number of experts used since its own last use.
///
/// Depths are always those of some order of all experts, in which those seen come before those never seen. So an expert
/// was seen if its depth is below the number of experts seen, and a sequence starts by setting that number to 0.
///
/// A token moves its experts to the front. Any other expert sinks by as many levels as the token uses experts from
/// below it, which all experts compare with the same depths, 64 in a vector register:
///
/// ```text
/// expert            0  1  2  3  4
/// depth             3  0  4  1  2      the token serves expert 2 and then expert 0
/// from below        1  2  0  2  2      depths 4 and 3 are below
/// depth             0  2  1  3  4
/// ```
///
/// # Complexity
/// `O(C)` vectors of 64 bytes an access. Memory is `O(C)`.
#[derive(Clone, Debug)]
pub(super) struct Recency<const C: usize> {
    depths: [Depths; C],
    distinct: usize,
}

/// The depths of 64 experts, in a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Depths([u8; 64]);

impl<const C: usize> Recency<C> {
    /// The largest pool.
    pub(super) const EXPERTS: usize = {
        assert!(C <= 4, "depths are bytes");
        64 * C
    };

    pub(super) fn new() -> Recency<C> {
        let mut depths = [Depths([0; 64]); C];
        let in_order = (0..=u8::MAX).zip(depths.iter_mut().flat_map(|depths| &mut depths.0));
        in_order.for_each(|(number, depth)| *depth = number);
        Recency { depths, distinct: 0 }
    }

    #[inline(always)]
    pub(super) fn reset(&mut self) {
        self.distinct = 0;
    }

    /// Serves a token, whose experts are distinct: calls `seen(depth)` or `new()` for every access, all judged before.
    #[inline(always)]
    pub(super) fn serve(&mut self, keys: &[u32], mut seen: impl FnMut(usize), mut new: impl FnMut()) {
        let judged = self.depths;
        let (mut sunk, mut front) = (judged, [Depths([u8::MAX; 64]); C]);
        let mut distinct = self.distinct;
        // From the last one served, which has depth 0 then.
        let mut place = u8::MAX;
        for &key in keys.iter().rev() {
            place = place.wrapping_add(1);
            let depth = self.depths[key as usize / 64 % C].0[key as usize % 64];
            if usize::from(depth) < self.distinct {
                seen(usize::from(depth));
            } else {
                new();
                distinct += 1;
            }
            for ((sunk, front), judged) in sunk.iter_mut().zip(&mut front).zip(&judged) {
                for ((sunk, front), &judged) in sunk.0.iter_mut().zip(&mut front.0).zip(&judged.0) {
                    *sunk += u8::from(judged < depth);
                    *front = if judged == depth { place } else { *front };
                }
            }
        }
        self.distinct = distinct;
        for (depths, (sunk, front)) in self.depths.iter_mut().zip(sunk.iter().zip(front)) {
            for (depth, (&sunk, front)) in depths.0.iter_mut().zip(sunk.0.iter().zip(front.0)) {
                // An expert of the token has the smaller depth in front.
                *depth = sunk.min(front);
            }
        }
    }
}
