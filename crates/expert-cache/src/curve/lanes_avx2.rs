//! Sixteen levels in two registers of AVX2.

use core::arch::x86_64::__m256i;

use pulp::{cast, x86::V3};

use super::lanes::{LANES, Lanes, NO_DEMAND, Sunk};

/// The instructions of x86-64-v3.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(V3);

impl Lanes for Avx2 {
    type Levels = [__m256i; 2];

    fn detect() -> Option<Avx2> {
        V3::try_new().map(Avx2)
    }

    #[inline(always)]
    fn vectorize<T>(self, run: impl FnOnce() -> T) -> T {
        self.0.vectorize(run)
    }

    #[inline(always)]
    fn splat(self, demand: u32) -> [__m256i; 2] {
        [self.0.avx._mm256_set1_epi32(demand.cast_signed()); 2]
    }

    #[inline(always)]
    fn find(self, levels: [__m256i; 2], demand: [__m256i; 2]) -> u16 {
        self.lanes(self.equal(levels, demand))
    }

    #[inline(always)]
    fn lower(self, levels: [__m256i; 2], demand: [__m256i; 2], by: [__m256i; 2]) -> [__m256i; 2] {
        let avx2 = self.0.avx2;
        let found = self.equal(levels, demand);
        [0, 1].map(|half| avx2._mm256_sub_epi32(levels[half], avx2._mm256_and_si256(found[half], by[half])))
    }

    #[inline(always)]
    fn rank(self, levels: [__m256i; 2], old: [__m256i; 2], new: [__m256i; 2]) -> ([__m256i; 2], u16) {
        let found = self.find(levels, old);
        let numbers: [__m256i; 2] = cast([0u32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        // 16 and so no lane if there is none.
        let first = self.equal(numbers, self.splat(found.trailing_zeros()));
        ([0, 1].map(|half| self.0.avx2._mm256_blendv_epi8(levels[half], new[half], first[half])), found)
    }

    #[inline(always)]
    fn sink(
        self,
        levels: [__m256i; 2],
        above: [__m256i; 2],
        old: [__m256i; 2],
        top: Option<[__m256i; 2]>,
    ) -> Sunk<[__m256i; 2]> {
        let avx2 = self.0.avx2;
        let found = self.equal(levels, old);
        let (first, below) = self.sink_half(levels[0], above[0], found[0]);
        let (second, below) = self.sink_half(levels[1], below, found[1]);
        let first = match top {
            Some(top) => avx2._mm256_blend_epi32::<1>(first, top[0]),
            None => first,
        };
        Sunk { levels: [first, second], found: self.lanes(found), below: [below; 2] }
    }

    #[inline(always)]
    fn first(self, levels: [__m256i; 2]) -> u32 {
        let levels: [u32; LANES] = cast(levels);
        levels[0]
    }

    #[inline(always)]
    fn most(self, levels: [[__m256i; 2]; 4]) -> u32 {
        let avx2 = self.0.avx2;
        let [a, b, c, d] = levels.map(|levels| avx2._mm256_max_epu32(levels[0], levels[1]));
        let most: [u32; 8] = cast(avx2._mm256_max_epu32(avx2._mm256_max_epu32(a, b), avx2._mm256_max_epu32(c, d)));
        most.into_iter().fold(0, u32::max)
    }
}

impl Avx2 {
    #[inline(always)]
    fn equal(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        [0, 1].map(|half| self.0.avx2._mm256_cmpeq_epi32(a[half], b[half]))
    }

    /// The lanes whose bits are set.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a bit for each of eight lanes")]
    fn lanes(self, masks: [__m256i; 2]) -> u16 {
        let avx = self.0.avx;
        let [low, high] =
            masks.map(|mask| avx._mm256_movemask_ps(avx._mm256_castsi256_ps(mask)).cast_unsigned() as u16);
        low | high << 8
    }

    /// Lets what `above` holds in every lane sink through eight levels, down to the first that was found, and returns
    /// what sinks on in every lane.
    #[inline(always)]
    fn sink_half(self, levels: __m256i, above: __m256i, found: __m256i) -> (__m256i, __m256i) {
        let avx2 = self.0.avx2;
        let place = |lanes: [u32; 8]| -> __m256i { cast(lanes) };
        // The demand that is found yields to any, and nothing sinks on from there: levels that more than any demand sinks
        // on to stay.
        let none = self.splat(NO_DEMAND)[0];
        let others = avx2._mm256_or_si256(levels, found);
        // The maximum down to each lane within halves, where moving lanes is cheap, then across.
        let most = avx2._mm256_max_epu32(others, avx2._mm256_bslli_epi128::<4>(others));
        let most = avx2._mm256_max_epu32(most, avx2._mm256_bslli_epi128::<8>(most));
        let before = avx2._mm256_permutevar8x32_epi32(most, place([0, 0, 1, 2, 3, 4, 5, 6]));
        let half = avx2._mm256_permutevar8x32_epi32(most, place([3; 8]));
        let within = avx2._mm256_max_epu32(above, avx2._mm256_blend_epi32::<0b1>(before, above));
        let sinking = avx2._mm256_max_epu32(within, avx2._mm256_blend_epi32::<0b1111>(half, above));
        let served = avx2._mm256_min_epu32(others, sinking);
        let stay = avx2._mm256_cmpeq_epi32(sinking, none);
        let last = avx2._mm256_max_epu32(others, sinking);
        let below = avx2._mm256_permutevar8x32_epi32(last, place([7; 8]));
        (avx2._mm256_blendv_epi8(served, levels, stay), below)
    }
}
