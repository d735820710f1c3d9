//! Sixteen levels of a priority stack in a vector register, for processors with AVX-512.

use core::arch::x86_64::__m512i;

use pulp::{cast, x86::V4};

/// Levels in a register.
pub(super) const LANES: usize = 16;

/// The demand at a level that no expert has, and of an expert that has no level.
pub(super) const ABSENT: u32 = 0;

/// Priorities are below this, so that the demand of an expert is not [`ABSENT`].
pub(super) const PRIORITIES: u64 = u32::MAX as u64;

/// How much an expert demands to sink: `u32::MAX - priority`.
#[inline(always)]
pub(super) fn demand(priority: u64) -> u32 {
    u32::MAX - narrow(priority)
}

/// A priority, or what is added to one, of a sequence whose priorities are below [`PRIORITIES`].
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "priorities were found to be below 2^32 when the sequence started")]
pub(super) fn narrow(priority: u64) -> u32 {
    priority as u32
}

/// Levels after an expert was served.
pub(super) struct Sunk {
    pub(super) levels: __m512i,
    /// The lanes that held the served expert.
    pub(super) found: u16,
    /// What sinks on, in every lane.
    pub(super) below: __m512i,
}

/// Levels hold demands alone. As no two experts that are used again have the same one, the level of an expert is found by
/// comparing with its demand. What sinks before level `i` is the maximum over the levels above, so that a register of
/// levels is served by one exclusive prefix maximum:
///
/// ```text
/// level      0   1   2   3   4   5
/// before     5   1   7   2   3   6     the expert at level 4 is served, its new demand is 4
/// sinking        5   5   7   7         maximum of the levels above
/// after      4   1   5   2   7   6     the smaller of the two; at its old level what sinks
/// ```
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes(V4);

impl Lanes {
    pub(super) fn detect() -> Option<Lanes> {
        V4::try_new().map(Lanes)
    }

    /// Runs code compiled for the instructions of this processor.
    #[inline(always)]
    pub(super) fn vectorize<T>(self, run: impl FnOnce() -> T) -> T {
        self.0.vectorize(run)
    }

    #[inline(always)]
    pub(super) fn splat(self, demand: u32) -> __m512i {
        self.0.avx512f._mm512_set1_epi32(demand.cast_signed())
    }

    /// Lanes that hold a demand.
    #[inline(always)]
    pub(super) fn find(self, levels: __m512i, demand: __m512i) -> u16 {
        self.0.avx512f._mm512_cmpeq_epi32_mask(levels, demand)
    }

    /// Lanes that hold a demand, of 64 levels or fewer.
    #[inline(always)]
    pub(super) fn find_among(self, levels: &[__m512i], demand: __m512i) -> u64 {
        let registers = (0..).step_by(LANES).zip(levels);
        registers.fold(0, |found, (shift, &levels)| found | u64::from(self.find(levels, demand)) << shift)
    }

    /// Lowers one demand.
    #[inline(always)]
    pub(super) fn lower(self, levels: __m512i, demand: __m512i, by: __m512i) -> __m512i {
        self.0.avx512f._mm512_mask_sub_epi32(levels, self.find(levels, demand), levels, by)
    }

    /// Replaces the first demand `old` by `new`; returns the lanes that held it.
    #[inline(always)]
    pub(super) fn rank(self, levels: __m512i, old: __m512i, new: __m512i) -> (__m512i, u16) {
        let found = self.find(levels, old);
        let first = found & found.wrapping_neg();
        (self.0.avx512f._mm512_mask_mov_epi32(levels, first, new), found)
    }

    /// Serves an expert of demand `old` in levels that come below a level that `above` sinks from. If they are the top
    /// ones and the expert goes there, `top` is its new demand, and `above` is 0.
    #[inline(always)]
    pub(super) fn sink(self, levels: __m512i, above: __m512i, old: __m512i, top: Option<__m512i>) -> Sunk {
        let f = self.0.avx512f;
        let found = self.find(levels, old);
        let sinking = f._mm512_max_epu32(self.most_before(levels), above);
        // Down to the first lane found, all lanes if there is none.
        let changed = found ^ found.wrapping_sub(1);
        // The demand that is found yields to any.
        let others = f._mm512_mask_mov_epi32(levels, found, self.splat(u32::MAX));
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

    /// The demand in the first lane.
    #[inline(always)]
    pub(super) fn first(self, lanes: __m512i) -> u32 {
        let lanes: [u32; LANES] = cast(lanes);
        lanes[0]
    }

    /// The largest demand of four registers.
    #[inline(always)]
    pub(super) fn most(self, [a, b, c, d]: [__m512i; 4]) -> u32 {
        let f = self.0.avx512f;
        f._mm512_reduce_max_epu32(f._mm512_max_epu32(f._mm512_max_epu32(a, b), f._mm512_max_epu32(c, d)))
    }

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
