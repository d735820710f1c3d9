//! Dot products of blocks of 32 weights with one half-precision scale, for x86-64.
//!
//! The ones of candle ask the processor for every scale whether it can convert half precision, which takes longer than the
//! rest. These convert directly, compute the same numbers in the same order otherwise, and share the tokens between four
//! rows.

use std::arch::x86_64::{
    __m256, __m256i, _mm_add_ps, _mm_add_ss, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_movehdup_ps,
    _mm_movehl_ps, _mm256_castps256_ps128, _mm256_cvtepi32_ps, _mm256_extractf128_ps, _mm256_fmadd_ps,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_set1_ps, _mm256_setzero_ps, _mm256_sign_epi8,
};

use candle_core::quantized::{GgmlDType, GgmlType, k_quants};
use half::f16;

/// Weights of a block.
const BLOCK: usize = 32;

/// Eight-bit weights, as GGUF files have them.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct WeightsQ8_0 {
    scale: u16,
    quants: [i8; BLOCK],
}

/// Four-bit weights, as GGUF files have them: the first half of them in the low bits.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct WeightsQ4_0 {
    scale: u16,
    quants: [u8; BLOCK / 2],
}

/// Eight-bit tokens. The scale is rounded to half precision, as candle does.
#[derive(Clone)]
pub(crate) struct TokensQ8_0 {
    scale: f32,
    quants: [i8; BLOCK],
}

/// Weights that are a scale times whole numbers.
trait Weights {
    /// The scale in half precision.
    fn scale(&self) -> u16;

    fn quants(&self) -> [i8; BLOCK];
}

impl Weights for WeightsQ8_0 {
    #[inline(always)]
    fn scale(&self) -> u16 {
        self.scale
    }

    #[inline(always)]
    fn quants(&self) -> [i8; BLOCK] {
        self.quants
    }
}

impl Weights for WeightsQ4_0 {
    #[inline(always)]
    fn scale(&self) -> u16 {
        self.scale
    }

    #[inline(always)]
    fn quants(&self) -> [i8; BLOCK] {
        let mut quants = [0; BLOCK];
        for (place, &pair) in self.quants.iter().enumerate() {
            quants[place] = (pair & 15).cast_signed() - 8;
            quants[place + BLOCK / 2] = (pair >> 4).cast_signed() - 8;
        }
        quants
    }
}

/// Dot products of `N` rows with the same tokens.
#[expect(unsafe_code, reason = "only the caller knows what the processor can")]
fn dots<W: Weights, const N: usize>(rows: [&[W]; N], tokens: &[TokensQ8_0]) -> [f32; N] {
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        // SAFETY: the processor can do what the function is compiled for, asked above.
        unsafe { dots_avx2(rows, tokens) }
    } else {
        rows.map(|row| row.iter().zip(tokens).map(|(weights, tokens)| dot_portable(weights, tokens)).sum())
    }
}

fn dot_portable<W: Weights>(weights: &W, tokens: &TokensQ8_0) -> f32 {
    let sum: i32 = weights.quants().iter().zip(&tokens.quants).map(|(&w, &t)| i32::from(w) * i32::from(t)).sum();
    #[expect(clippy::cast_precision_loss, reason = "at most 32 * 128 * 127, which is exact")]
    let sum = sum as f32;
    f16::from_bits(weights.scale()).to_f32() * tokens.scale * sum
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dots_avx2<W: Weights, const N: usize>(rows: [&[W]; N], tokens: &[TokensQ8_0]) -> [f32; N] {
    let rows = rows.map(|row| &row[..tokens.len()]);
    let mut sums = [_mm256_setzero_ps(); N];
    for (place, tokens) in tokens.iter().enumerate() {
        let t: __m256i = bytemuck::cast(tokens.quants);
        for (sum, row) in sums.iter_mut().zip(rows) {
            let w: __m256i = bytemuck::cast(row[place].quants());
            // Unsigned times signed: the signs of the weights move to the tokens.
            let pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(w, w), _mm256_sign_epi8(t, w));
            let products = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            let scale = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(row[place].scale().into())));
            *sum = _mm256_fmadd_ps(_mm256_set1_ps(scale * tokens.scale), products, *sum);
        }
    }
    let mut totals = [0.0; N];
    for (total, sum) in totals.iter_mut().zip(sums) {
        *total = add_lanes(sum);
    }
    totals
}

#[target_feature(enable = "avx2")]
fn add_lanes(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_extractf128_ps(lanes, 1), _mm256_castps256_ps128(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Weights are multiplied only: their values are candle's business.
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
                blocks.clone_from_slice(crate::block_matrix::blocks(crate::block_matrix::bytes_of(&quantized)));
            }

            fn vec_dot(_: usize, row: &[Self], tokens: &[TokensQ8_0]) -> f32 {
                dots([row], tokens)[0]
            }

            fn vec_dot_unopt(n: usize, row: &[Self], tokens: &[TokensQ8_0]) -> f32 {
                Self::vec_dot(n, row, tokens)
            }

            fn vec_dot_4(
                _: usize,
                row0: &[Self],
                row1: &[Self],
                row2: &[Self],
                row3: &[Self],
                tokens: &[TokensQ8_0],
            ) -> (f32, f32, f32, f32) {
                dots([row0, row1, row2, row3], tokens).into()
            }
        }
    };
}

weights!(WeightsQ8_0, BlockQ8_0);
weights!(WeightsQ4_0, BlockQ4_0);

impl GgmlType for TokensQ8_0 {
    const DTYPE: GgmlDType = GgmlDType::Q8_0;
    const BLCK_SIZE: usize = BLOCK;
    type VecDotType = TokensQ8_0;

    fn to_float(blocks: &[Self], values: &mut [f32]) {
        for (block, values) in blocks.iter().zip(values.chunks_exact_mut(BLOCK)) {
            values.iter_mut().zip(block.quants).for_each(|(value, quant)| *value = block.scale * f32::from(quant));
        }
    }

    fn from_float(values: &[f32], blocks: &mut [Self]) {
        for (block, values) in blocks.iter_mut().zip(values.chunks_exact(BLOCK)) {
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let scale = largest / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            block.scale = f16::from_f32(scale).to_f32();
            #[expect(clippy::cast_possible_truncation, reason = "at most 127 in size; NaN becomes 0, as in candle")]
            block.quants.iter_mut().zip(values).for_each(|(quant, value)| *quant = (value * inverse).round() as i8);
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
        let mut tokens = vec![TokensQ8_0::zeros(); 7];
        TokensQ8_0::from_float(&values(0.7), &mut tokens);
        let rows = [0.3, 0.9, 1.7, 4.1].map(|salt| {
            let mut row = vec![W::zeros(); 7];
            W::from_float(&values(salt), &mut row);
            row
        });
        let four = dots(rows.each_ref().map(Vec::as_slice), &tokens);
        for (row, four) in rows.iter().zip(four) {
            let portable: f32 = row.iter().zip(&tokens).map(|(weights, tokens)| dot_portable(weights, tokens)).sum();
            let (mut w, mut t) = (vec![0.0; BLOCK * 7], vec![0.0; BLOCK * 7]);
            W::to_float(row, &mut w);
            TokensQ8_0::to_float(&tokens, &mut t);
            let numbers: f32 = w.iter().zip(&t).map(|(w, t)| w * t).sum();
            assert_eq!(W::vec_dot(BLOCK * 7, row, &tokens).to_bits(), four.to_bits());
            assert!((portable - four).abs() < 1e-4 && (numbers - four).abs() < 1e-4, "{portable}, {numbers}, {four}");
        }
    }

    #[test]
    fn vectors_portable_code_and_numbers_agree() {
        agree::<WeightsQ8_0>();
        agree::<WeightsQ4_0>();
    }
}
