//! Sixteen levels in a register of AVX-512.

use core::arch::x86_64::__m512i;

use pulp::{cast, x86::V4};

use super::lanes::{LANES, Lanes, NO_DEMAND, Sunk};

/// The instructions of x86-64-v4.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(V4);

impl Lanes for Avx512 {
    type Levels = __m512i;

    fn detect() -> Option<Avx512> {
        V4::try_new().map(Avx512)
    }

    #[inline(always)]
    fn vectorize<T>(self, run: impl FnOnce() -> T) -> T {
        self.0.vectorize(run)
    }

    #[inline(always)]
    fn splat(self, demand: u32) -> __m512i {
        self.0.avx512f._mm512_set1_epi32(demand.cast_signed())
    }

    #[inline(always)]
    fn find(self, levels: __m512i, demand: __m512i) -> u16 {
        self.0.avx512f._mm512_cmpeq_epi32_mask(levels, demand)
    }

    #[inline(always)]
    fn lower(self, levels: __m512i, demand: __m512i, by: __m512i) -> __m512i {
        self.0.avx512f._mm512_mask_sub_epi32(levels, self.find(levels, demand), levels, by)
    }

    #[inline(always)]
    fn rank(self, levels: __m512i, old: __m512i, new: __m512i) -> (__m512i, u16) {
        let found = self.find(levels, old);
        let first = found & found.wrapping_neg();
        (self.0.avx512f._mm512_mask_mov_epi32(levels, first, new), found)
    }

    #[inline(always)]
    fn sink(self, levels: __m512i, above: __m512i, old: __m512i, top: Option<__m512i>) -> Sunk<__m512i> {
        let f = self.0.avx512f;
        let found = self.find(levels, old);
        let sinking = f._mm512_max_epu32(self.most_before(levels), above);
        // Down to the first lane found, all lanes if there is none.
        let changed = found ^ found.wrapping_sub(1);
        // The demand that is found yields to any.
        let others = f._mm512_mask_mov_epi32(levels, found, self.splat(NO_DEMAND));
        let after = match top {
            Some(top) => {
                let served = f._mm512_mask_mov_epi32(levels, 1, top);
                f._mm512_mask_min_epu32(served, changed & !1, others, sinking)
            }
            None => f._mm512_mask_min_epu32(levels, changed, others, sinking),
        };
        let last = cast([15u32; LANES]);
        let below = f._mm512_permutexvar_epi32(last, f._mm512_max_epu32(levels, sinking));
        Sunk { levels: after, found, below }
    }

    #[inline(always)]
    fn first(self, lanes: __m512i) -> u32 {
        let lanes: [u32; LANES] = cast(lanes);
        lanes[0]
    }

    #[inline(always)]
    fn most(self, [a, b, c, d]: [__m512i; 4]) -> u32 {
        let f = self.0.avx512f;
        f._mm512_reduce_max_epu32(f._mm512_max_epu32(f._mm512_max_epu32(a, b), f._mm512_max_epu32(c, d)))
    }
}

impl Avx512 {
    /// The maximum of the lanes before each lane, 0 before the first.
    #[inline(always)]
    fn most_before(self, lanes: __m512i) -> __m512i {
        let (f, bw) = (self.0.avx512f, self.0.avx512bw);
        let zero = cast([0u32; LANES]);
        // Within quarters, where moving lanes is cheap, then quarter by quarter.
        let most = f._mm512_max_epu32(lanes, bw._mm512_bslli_epi128::<4>(lanes));
        let most = f._mm512_max_epu32(most, bw._mm512_bslli_epi128::<8>(most));
        let quarters = f._mm512_shuffle_epi32::<0xff>(most);
        let within = bw._mm512_bslli_epi128::<4>(most);
        let within = f._mm512_max_epu32(within, f._mm512_alignr_epi32::<12>(quarters, zero));
        let two = f._mm512_alignr_epi32::<8>(quarters, zero);
        let three = f._mm512_alignr_epi32::<4>(quarters, zero);
        f._mm512_max_epu32(within, f._mm512_max_epu32(two, three))
    }
}
