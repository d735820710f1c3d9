//! Does a row have an id twice? Every row is compared with itself, rotated, in vector registers.

use core::arch::x86_64::{__m128i, __m256i};
use core::marker::PhantomData;

use bytemuck::Pod;
use pulp::{NullaryFnOnce, cast, x86::V3};

/// Bytes that one shuffle instruction can permute; as many whole rows as fit are compared there.
const LANE: usize = 16;
/// Registers of two lanes that are judged together.
const REGISTERS: usize = 4;
/// Bytes that a block may reach over.
const WINDOW: usize = REGISTERS * 2 * LANE;

/// An id as wide as the parts of a register.
pub(crate) trait LaneId: Pod {
    /// Marks an empty slot; above every expert.
    const EMPTY: Self;

    fn splat(self, simd: V3) -> __m256i;

    /// All bits of a part where `a` and `b` are equal, none where they differ.
    fn equal(simd: V3, a: __m256i, b: __m256i) -> __m256i;

    /// The larger one, part by part.
    fn larger(simd: V3, a: __m256i, b: __m256i) -> __m256i;
}

impl LaneId for u8 {
    const EMPTY: u8 = u8::MAX;

    #[inline(always)]
    fn splat(self, simd: V3) -> __m256i {
        simd.avx._mm256_set1_epi8(self.cast_signed())
    }

    #[inline(always)]
    fn equal(simd: V3, a: __m256i, b: __m256i) -> __m256i {
        simd.avx2._mm256_cmpeq_epi8(a, b)
    }

    #[inline(always)]
    fn larger(simd: V3, a: __m256i, b: __m256i) -> __m256i {
        simd.avx2._mm256_max_epu8(a, b)
    }
}

impl LaneId for u16 {
    const EMPTY: u16 = u16::MAX;

    #[inline(always)]
    fn splat(self, simd: V3) -> __m256i {
        simd.avx._mm256_set1_epi16(self.cast_signed())
    }

    #[inline(always)]
    fn equal(simd: V3, a: __m256i, b: __m256i) -> __m256i {
        simd.avx2._mm256_cmpeq_epi16(a, b)
    }

    #[inline(always)]
    fn larger(simd: V3, a: __m256i, b: __m256i) -> __m256i {
        simd.avx2._mm256_max_epu16(a, b)
    }
}

/// Judges rows of `top_k` ids from the beginning, as many as fill whole blocks; gives the ids that are left, or `None` if
/// an id is above `largest` and not empty, or twice in its row.
///
/// Rows that do not fit into a [`LANE`] are all left.
///
/// # Complexity
/// `top_k / 2` shuffles and comparisons of 32 bytes: a rotation by `d` also compares ids that are `top_k - d` apart.
pub(crate) fn judge<I: LaneId>(simd: V3, ids: &[I], top_k: usize, largest: I) -> Option<&[I]> {
    let rows = Rows { simd, bytes: bytemuck::cast_slice(ids), row: top_k * size_of::<I>(), largest };
    let judged = simd.vectorize(rows)?;
    Some(&ids[judged / size_of::<I>()..])
}

/// Rows of `row` bytes. Not a closure: what calls those is not always inlined, and then the instructions are not either.
struct Rows<'a, I> {
    simd: V3,
    bytes: &'a [u8],
    row: usize,
    largest: I,
}

impl<I: LaneId> Rows<'_, I> {
    #[inline(always)]
    fn rows<const ROW: usize>(&self) -> Option<usize> {
        Rotations::<I, ROW>::new(self.simd, self.largest).judge(self.bytes)
    }
}

impl<I: LaneId> NullaryFnOnce for Rows<'_, I> {
    type Output = Option<usize>;

    #[inline(always)]
    fn call(self) -> Option<usize> {
        match self.row {
            1 => self.rows::<1>(),
            2 => self.rows::<2>(),
            3 => self.rows::<3>(),
            4 => self.rows::<4>(),
            5 => self.rows::<5>(),
            6 => self.rows::<6>(),
            7 => self.rows::<7>(),
            8 => self.rows::<8>(),
            9 => self.rows::<9>(),
            10 => self.rows::<10>(),
            11 => self.rows::<11>(),
            12 => self.rows::<12>(),
            13 => self.rows::<13>(),
            14 => self.rows::<14>(),
            15 => self.rows::<15>(),
            16 => self.rows::<16>(),
            _ => Some(0),
        }
    }
}

/// Rows of `ROW` bytes in registers.
struct Rotations<I, const ROW: usize> {
    simd: V3,
    largest: __m256i,
    id: PhantomData<I>,
}

impl<I: LaneId, const ROW: usize> Rotations<I, ROW> {
    /// Bytes of the whole rows in a lane.
    const WHOLE: usize = LANE / ROW * ROW;

    /// Rotations by 1, 2, ... ids: where each byte of a register comes from. Of those after `TURNS` none is used.
    const SOURCES: [[u8; 2 * LANE]; LANE / 2] = {
        let mut sources = [[0; 2 * LANE]; LANE / 2];
        let mut turn = 0;
        while turn < Self::TURNS {
            let mut byte = 0;
            while byte < 2 * LANE {
                let (start, at) = (byte % LANE / ROW * ROW, byte % LANE % ROW);
                let from = start + (at + (turn + 1) * size_of::<I>()) % ROW;
                #[expect(clippy::cast_possible_truncation, reason = "below twice LANE; only those below LANE are used")]
                {
                    sources[turn][byte] = from as u8;
                }
                byte += 1;
            }
            turn += 1;
        }
        sources
    };
    const TURNS: usize = ROW / size_of::<I>() / 2;

    /// The bytes of a register that belong to whole rows.
    const USED: [u8; 2 * LANE] = {
        let mut used = [0; 2 * LANE];
        let mut byte = 0;
        while byte < 2 * LANE {
            used[byte] = if byte % LANE < Self::WHOLE { u8::MAX } else { 0 };
            byte += 1;
        }
        used
    };

    #[inline(always)]
    fn new(simd: V3, largest: I) -> Rotations<I, ROW> {
        Rotations { simd, largest: largest.splat(simd), id: PhantomData }
    }

    /// Judges whole blocks; gives the number of their bytes.
    #[inline(always)]
    fn judge(&self, bytes: &[u8]) -> Option<usize> {
        let mut judged = 0;
        while let Some(window) = bytes[judged..].first_chunk() {
            let registers = self.load(window);
            // Empty slots are rare, and looking for them takes time.
            if !self.full_and_valid(&registers) && !self.valid(&registers) {
                return None;
            }
            judged += REGISTERS * 2 * Self::WHOLE;
        }
        Some(judged)
    }

    #[inline(always)]
    fn load(&self, window: &[u8; WINDOW]) -> [__m256i; REGISTERS] {
        if Self::WHOLE == LANE {
            return cast(*window);
        }
        [self.two_lanes(window, 0), self.two_lanes(window, 1), self.two_lanes(window, 2), self.two_lanes(window, 3)]
    }

    #[inline(always)]
    fn two_lanes(&self, window: &[u8; WINDOW], register: usize) -> __m256i {
        let (low, high) = (Self::lane(window, 2 * register), Self::lane(window, 2 * register + 1));
        self.simd.avx._mm256_set_m128i(high, low)
    }

    #[inline(always)]
    fn lane(window: &[u8; WINDOW], index: usize) -> __m128i {
        let bytes = window[index * Self::WHOLE..].first_chunk::<LANE>();
        cast(*bytes.expect("a window has room for as many whole lanes"))
    }

    /// All bits where an id is also elsewhere in its row.
    #[inline(always)]
    fn twice(&self, ids: __m256i) -> __m256i {
        let V3 { avx2, avx, .. } = self.simd;
        let mut twice = avx._mm256_setzero_si256();
        for source in &Self::SOURCES[..Self::TURNS] {
            let rotated = avx2._mm256_shuffle_epi8(ids, cast(*source));
            twice = avx2._mm256_or_si256(twice, I::equal(self.simd, ids, rotated));
        }
        twice
    }

    #[inline(always)]
    fn none(&self, bits: __m256i) -> bool {
        self.simd.avx._mm256_testz_si256(bits, cast(Self::USED)) == 1
    }

    /// Whether all slots have an expert and no row has one twice.
    #[inline(always)]
    fn full_and_valid(&self, registers: &[__m256i; REGISTERS]) -> bool {
        let V3 { avx2, avx, .. } = self.simd;
        let (mut twice, mut above) = (avx._mm256_setzero_si256(), self.largest);
        for &ids in registers {
            twice = avx2._mm256_or_si256(twice, self.twice(ids));
            above = I::larger(self.simd, above, ids);
        }
        self.none(avx2._mm256_or_si256(twice, avx2._mm256_xor_si256(above, self.largest)))
    }

    /// Whether every slot is empty or has an expert, and no row has one twice.
    #[inline(always)]
    fn valid(&self, registers: &[__m256i; REGISTERS]) -> bool {
        let V3 { avx2, .. } = self.simd;
        let empty = I::EMPTY.splat(self.simd);
        let mut wrong = self.simd.avx._mm256_setzero_si256();
        for &ids in registers {
            let above = avx2._mm256_xor_si256(I::larger(self.simd, self.largest, ids), self.largest);
            let either = avx2._mm256_or_si256(self.twice(ids), above);
            wrong = avx2._mm256_or_si256(wrong, avx2._mm256_andnot_si256(I::equal(self.simd, ids, empty), either));
        }
        self.none(wrong)
    }
}
