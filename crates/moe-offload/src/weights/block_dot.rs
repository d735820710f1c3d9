//! Dot products of blocks of 32 weights with one half-precision scale, for x86-64.
//!
//! Whole numbers are multiplied exactly, so all vector instructions give the same bits: lane `i` of a sum belongs to the weights
//! `4 i..4 i + 4` of every block, and lanes are added at the end.

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps, _mm_set1_epi16,
    _mm256_castps256_ps128, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_dpbusd_avx_epi32, _mm256_dpbusd_epi32,
    _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_mullo_epi32,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_sign_epi8,
    _mm256_sub_epi8,
};

use candle_core::quantized::{GgmlDType, GgmlType, k_quants};
use half::f16;

use super::ask_ahead::ask_ahead;
use super::block_matmul::{QUAD, RowBlocks};

/// Weights of a block.
const BLOCK: usize = 32;
/// Weights that share a lane of a vector.
const LANE: usize = 4;
/// Eight-bit weights, as GGUF files have them.
#[derive(Clone)]
#[repr(C)]
pub(super) struct WeightsQ8_0 {
    scale: u16,
    quants: [i8; BLOCK],
}

/// Four-bit weights, as GGUF files have them: the first half of them in the low bits.
#[derive(Clone)]
#[repr(C)]
pub(super) struct WeightsQ4_0 {
    scale: u16,
    quants: [u8; BLOCK / 2],
}

/// Eight-bit tokens. The scale is rounded to half precision, as candle does.
#[derive(Clone)]
pub(super) struct TokensQ8_0 {
    scale: f32,
    quants: [i8; BLOCK],
    /// Sums of the quants of each lane.
    sums: [i32; BLOCK / LANE],
}

/// Weights that are a scale times whole numbers.
trait Weights {
    /// What the numbers are too large by.
    const BIAS: i8;

    /// The scale in half precision.
    fn scale(&self) -> u16;

    /// The numbers.
    fn biased(&self) -> [u8; BLOCK];

    fn quants(&self) -> [i8; BLOCK] {
        self.biased().map(|quant| quant.wrapping_sub(Self::BIAS.cast_unsigned()).cast_signed())
    }
}

impl Weights for WeightsQ8_0 {
    const BIAS: i8 = i8::MIN;

    #[inline(always)]
    fn scale(&self) -> u16 {
        self.scale
    }

    #[inline(always)]
    fn biased(&self) -> [u8; BLOCK] {
        // Eight at a time.
        let words: [u64; BLOCK / 8] = bytemuck::cast(self.quants);
        bytemuck::cast(words.map(|word| word ^ 0x8080_8080_8080_8080))
    }
}

impl Weights for WeightsQ4_0 {
    const BIAS: i8 = 8;

    #[inline(always)]
    fn scale(&self) -> u16 {
        self.scale
    }

    #[inline(always)]
    fn biased(&self) -> [u8; BLOCK] {
        let mut quants = [0; BLOCK];
        for (place, &pair) in self.quants.iter().enumerate() {
            quants[place] = pair & 15;
            quants[place + BLOCK / 2] = pair >> 4;
        }
        quants
    }
}

/// The instructions that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instructions {
    Avx512Vnni,
    AvxVnni,
    Avx2,
    Portable,
}

impl Instructions {
    /// The best that the processor has.
    fn detect() -> Instructions {
        let has_avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        if !has_avx2 {
            Instructions::Portable
        } else if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl") {
            Instructions::Avx512Vnni
        } else if is_x86_feature_detected!("avxvnni") {
            Instructions::AvxVnni
        } else {
            Instructions::Avx2
        }
    }
}

/// Dot products of rows, one after the other in memory, with tokens.
#[expect(unsafe_code, reason = "only the caller knows what the processor can")]
fn dots<W: Weights, const ROWS: usize, const TOKENS: usize>(
    instructions: Instructions,
    rows: [&[W]; ROWS],
    tokens: [&[TokensQ8_0]; TOKENS],
) -> [[f32; ROWS]; TOKENS] {
    match instructions {
        // SAFETY: the processor can do what the functions are compiled for, asked when the instructions were chosen.
        Instructions::Avx512Vnni => unsafe { dots_avx512_vnni(rows, tokens) },
        // SAFETY: as above.
        Instructions::AvxVnni => unsafe { dots_avx_vnni(rows, tokens) },
        // SAFETY: as above.
        Instructions::Avx2 => unsafe { dots_avx2(rows, tokens) },
        Instructions::Portable => {
            tokens.map(|tokens| rows.map(|row| row.iter().zip(tokens).map(|(w, t)| dot_portable(w, t)).sum()))
        }
    }
}

fn dot_portable<W: Weights>(weights: &W, tokens: &TokensQ8_0) -> f32 {
    let sum: i32 = weights.quants().iter().zip(&tokens.quants).map(|(&w, &t)| i32::from(w) * i32::from(t)).sum();
    #[expect(clippy::cast_precision_loss, reason = "at most 32 * 128 * 127, which is exact")]
    let sum = sum as f32;
    f16::from_bits(weights.scale()).to_f32() * tokens.scale * sum
}

/// A form of [`dots`] in some vector instructions; `products` sums the products of the weights of each lane.
macro_rules! vector_dots {
    ($name:ident, $features:literal, $products:ident) => {
        #[target_feature(enable = $features)]
        fn $name<W: Weights, const ROWS: usize, const TOKENS: usize>(
            rows: [&[W]; ROWS],
            tokens: [&[TokensQ8_0]; TOKENS],
        ) -> [[f32; ROWS]; TOKENS] {
            let blocks = rows[0].len();
            let rows = rows.map(|row| &row[..blocks]);
            let tokens = tokens.map(|token| &token[..blocks]);
            let mut sums = [[_mm256_setzero_ps(); ROWS]; TOKENS];
            for block in 0..blocks {
                ask_ahead(rows[0].as_ptr().wrapping_add(block * ROWS), ROWS * size_of::<W>());
                for row in 0..ROWS {
                    let weights = &rows[row][block];
                    let quants: __m256i = bytemuck::cast(weights.biased());
                    let scale = _mm256_cvtph_ps(_mm_set1_epi16(weights.scale().cast_signed()));
                    for token in 0..TOKENS {
                        let tokens = &tokens[token][block];
                        let products = _mm256_cvtepi32_ps($products::<W>(quants, tokens));
                        let scale = _mm256_mul_ps(scale, _mm256_set1_ps(tokens.scale));
                        sums[token][row] = _mm256_fmadd_ps(scale, products, sums[token][row]);
                    }
                }
            }
            let mut totals = [[0.0; ROWS]; TOKENS];
            for (totals, sums) in totals.iter_mut().zip(sums) {
                for (total, sum) in totals.iter_mut().zip(sums) {
                    *total = add_lanes(sum);
                }
            }
            totals
        }
    };
}

vector_dots!(dots_avx2, "avx2,fma,f16c", products_avx2);
vector_dots!(dots_avx_vnni, "avx2,fma,f16c,avxvnni", products_avx_vnni);
vector_dots!(dots_avx512_vnni, "avx2,fma,f16c,avx512vnni,avx512vl", products_avx512_vnni);

/// Unsigned times signed, where no sum of two products leaves 16 bits: the signs of the weights move to the tokens.
#[inline]
#[target_feature(enable = "avx2")]
fn products_avx2<W: Weights>(biased: __m256i, tokens: &TokensQ8_0) -> __m256i {
    let weights = _mm256_sub_epi8(biased, _mm256_set1_epi8(W::BIAS));
    let tokens = bytemuck::cast(tokens.quants);
    let pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(weights, weights), _mm256_sign_epi8(tokens, weights));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// What the bias adds to the sums of products, to be taken back.
#[inline]
#[target_feature(enable = "avx2")]
fn unbias<W: Weights>(tokens: &TokensQ8_0) -> __m256i {
    _mm256_mullo_epi32(bytemuck::cast(tokens.sums), _mm256_set1_epi32(-i32::from(W::BIAS.cast_unsigned())))
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn products_avx_vnni<W: Weights>(biased: __m256i, tokens: &TokensQ8_0) -> __m256i {
    _mm256_dpbusd_avx_epi32(unbias::<W>(tokens), biased, bytemuck::cast(tokens.quants))
}

#[inline]
#[target_feature(enable = "avx2,avx512vnni,avx512vl")]
fn products_avx512_vnni<W: Weights>(biased: __m256i, tokens: &TokensQ8_0) -> __m256i {
    _mm256_dpbusd_epi32(unbias::<W>(tokens), biased, bytemuck::cast(tokens.quants))
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_lanes(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_extractf128_ps(lanes, 1), _mm256_castps256_ps128(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// What candle asks of blocks: dot products are our own, rounding to blocks is candle's.
macro_rules! weights {
    ($own:ident, $candle:ident) => {
        impl GgmlType for $own {
            const DTYPE: GgmlDType = k_quants::$candle::DTYPE;
            const BLCK_SIZE: usize = BLOCK;
            type VecDotType = TokensQ8_0;

            fn to_float(blocks: &[Self], values: &mut [f32]) {
                for (block, values) in blocks.iter().zip(values.chunks_exact_mut(BLOCK)) {
                    let scale = f16::from_bits(block.scale).to_f32();
                    values.iter_mut().zip(block.quants()).for_each(|(value, quant)| *value = scale * f32::from(quant));
                }
            }

            fn from_float(values: &[f32], blocks: &mut [Self]) {
                let mut quantized = vec![k_quants::$candle::zeros(); blocks.len()];
                k_quants::$candle::from_float(values, &mut quantized);
                blocks.clone_from_slice(crate::weights::block_matrix::blocks(crate::weights::block_matrix::bytes_of(
                    &quantized,
                )));
            }

            fn vec_dot(_: usize, row: &[Self], tokens: &[TokensQ8_0]) -> f32 {
                dots(Instructions::detect(), [row], [tokens])[0][0]
            }

            fn vec_dot_unopt(n: usize, row: &[Self], tokens: &[TokensQ8_0]) -> f32 {
                Self::vec_dot(n, row, tokens)
            }
        }

        impl RowBlocks for $own {
            fn dots<const TOKENS: usize>(
                rows: [&[Self]; QUAD],
                tokens: [&[TokensQ8_0]; TOKENS],
            ) -> [[f32; QUAD]; TOKENS] {
                dots(Instructions::detect(), rows, tokens)
            }
        }
    };
}

weights!(WeightsQ8_0, BlockQ8_0);
weights!(WeightsQ4_0, BlockQ4_0);

/// [`round_tokens`] in vector instructions.
#[target_feature(enable = "avx2,fma")]
fn round_tokens_avx2(values: &[f32], blocks: &mut [TokensQ8_0]) {
    round_tokens(values, blocks);
}

#[inline(always)]
fn round_tokens(values: &[f32], blocks: &mut [TokensQ8_0]) {
    for (block, values) in blocks.iter_mut().zip(values.chunks_exact(BLOCK)) {
        let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let scale = largest / 127.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        block.scale = f16::from_f32(scale).to_f32();
        #[expect(clippy::cast_possible_truncation, reason = "at most 127 in size; NaN becomes 0, as in candle")]
        block.quants.iter_mut().zip(values).for_each(|(quant, value)| *quant = (value * inverse).round() as i8);
        let lanes = block.quants.as_chunks::<LANE>().0;
        block.sums.iter_mut().zip(lanes).for_each(|(sum, lane)| *sum = lane.iter().copied().map(i32::from).sum());
    }
}

impl GgmlType for TokensQ8_0 {
    const DTYPE: GgmlDType = GgmlDType::Q8_0;
    const BLCK_SIZE: usize = BLOCK;
    type VecDotType = TokensQ8_0;

    fn to_float(blocks: &[Self], values: &mut [f32]) {
        for (block, values) in blocks.iter().zip(values.chunks_exact_mut(BLOCK)) {
            values.iter_mut().zip(block.quants).for_each(|(value, quant)| *value = block.scale * f32::from(quant));
        }
    }

    #[expect(unsafe_code, reason = "only the caller knows what the processor can")]
    fn from_float(values: &[f32], blocks: &mut [Self]) {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor can do what the function is compiled for, asked above.
            unsafe { round_tokens_avx2(values, blocks) }
        } else {
            round_tokens(values, blocks);
        }
    }

    fn vec_dot(_: usize, left: &[Self], right: &[Self]) -> f32 {
        let dot = |(left, right): (&TokensQ8_0, &TokensQ8_0)| {
            let products = left.quants.iter().zip(right.quants).map(|(&l, r)| f32::from(i16::from(l) * i16::from(r)));
            left.scale * right.scale * products.sum::<f32>()
        };
        left.iter().zip(right).map(dot).sum()
    }

    fn vec_dot_unopt(n: usize, left: &[Self], right: &[Self]) -> f32 {
        Self::vec_dot(n, left, right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree<W: GgmlType<VecDotType = TokensQ8_0> + Weights>() {
        let values = |salt: f32| (0..BLOCK * 7).map(|i| (i as f32 * salt).sin()).collect::<Vec<f32>>();
        let quantized = |salt: f32| {
            let mut tokens = vec![TokensQ8_0::zeros(); 7];
            TokensQ8_0::from_float(&values(salt), &mut tokens);
            tokens
        };
        let tokens = [0.7, 0.2, 5.3].map(quantized);
        let rows = [0.3, 0.9, 1.7, 4.1].map(|salt| {
            let mut row = vec![W::zeros(); 7];
            W::from_float(&values(salt), &mut row);
            row
        });
        let of =
            |instructions| dots(instructions, rows.each_ref().map(Vec::as_slice), tokens.each_ref().map(Vec::as_slice));
        let (portable, best) = (of(Instructions::Portable), of(Instructions::detect()));
        if is_x86_feature_detected!("avxvnni") {
            assert_eq!(of(Instructions::AvxVnni), best);
        }
        if Instructions::detect() != Instructions::Portable {
            assert_eq!(of(Instructions::Avx2), best);
        }
        for (token, tokens) in tokens.iter().enumerate() {
            for (row, weights) in rows.iter().enumerate() {
                let (mut w, mut t) = (vec![0.0; BLOCK * 7], vec![0.0; BLOCK * 7]);
                W::to_float(weights, &mut w);
                TokensQ8_0::to_float(tokens, &mut t);
                let numbers: f32 = w.iter().zip(&t).map(|(w, t)| w * t).sum();
                let (portable, best) = (portable[token][row], best[token][row]);
                assert_eq!(W::vec_dot(BLOCK * 7, weights, tokens).to_bits(), best.to_bits());
                assert!(
                    (portable - best).abs() < 1e-4 && (numbers - best).abs() < 1e-4,
                    "{portable}, {numbers}, {best}"
                );
            }
        }
    }

    #[test]
    fn vectors_portable_code_and_numbers_agree() {
        agree::<WeightsQ8_0>();
        agree::<WeightsQ4_0>();
    }

    #[test]
    fn the_largest_weights_and_tokens_do_not_overflow() {
        let tokens = [[-127i8; BLOCK], [127; BLOCK]].map(|quants| {
            let sums = [i32::from(quants[0]) * 4; BLOCK / LANE];
            vec![TokensQ8_0 { scale: 1.0, quants, sums }]
        });
        let one = f16::ONE.to_bits();
        let rows = [[i8::MIN; BLOCK], [127; BLOCK]].map(|quants| vec![WeightsQ8_0 { scale: one, quants }]);
        let best = Instructions::detect();
        let avx2 = if best == Instructions::Portable { best } else { Instructions::Avx2 };
        for instructions in [best, avx2, Instructions::Portable] {
            let rows = rows.each_ref().map(Vec::as_slice);
            let totals = dots(instructions, rows, tokens.each_ref().map(Vec::as_slice));
            let (least, most) = ((128 * 127 * BLOCK) as f32, (127 * 127 * BLOCK) as f32);
            assert_eq!(totals, [[least, -most], [-least, most]], "{instructions:?}");
        }
    }
}
