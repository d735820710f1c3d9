//! Products of tokens and matrices of quantized blocks, on all threads.

use std::ops::Range;

use candle_core::quantized::{GgmlType, k_quants};
use candle_core::utils::barrier_pool;

use super::products::Products;

/// Rows that are multiplied together.
pub(super) const QUAD: usize = 4;
/// Tokens that are multiplied together.
const TILE: usize = 4;
/// Tokens whose quads follow each other, so that what they need stays in the processor's caches.
const BATCH: usize = 64;

/// Bytes of a matrix, times tokens, from which on threads share it: below, waking them takes longer.
const SHARED_BYTES: usize = 1 << 18;

/// Blocks whose rows are multiplied with several tokens at once. Each product is what it is by itself.
pub(super) trait RowBlocks: GgmlType {
    /// Dot products of rows, one after the other in memory, with tokens.
    fn dots<const TOKENS: usize>(
        rows: [&[Self]; QUAD],
        tokens: [&[Self::VecDotType]; TOKENS],
    ) -> [[f32; QUAD]; TOKENS] {
        let ([a, b, c, d], columns) = (rows, rows[0].len() * Self::BLCK_SIZE);
        tokens.map(|tokens| Self::vec_dot_4(columns, a, b, c, d, tokens).into())
    }
}

impl RowBlocks for k_quants::BlockQ4_0 {}
impl RowBlocks for k_quants::BlockQ4_1 {}
impl RowBlocks for k_quants::BlockQ5_0 {}
impl RowBlocks for k_quants::BlockQ5_1 {}
impl RowBlocks for k_quants::BlockQ8_0 {}
impl RowBlocks for k_quants::BlockQ2K {}
impl RowBlocks for k_quants::BlockQ3K {}
impl RowBlocks for k_quants::BlockQ4K {}
impl RowBlocks for k_quants::BlockQ5K {}
impl RowBlocks for k_quants::BlockQ6K {}

/// Multiplies `tokens`, `[tokens, columns]`, with `weights`, rows of `columns / T::BLCK_SIZE` blocks: `[tokens, rows]`.
///
/// # Panics
/// If tokens or rows are no whole ones.
pub(super) fn matmul<T: RowBlocks>(columns: usize, tokens: &[f32], weights: &[T]) -> Vec<f32> {
    let blocks = columns / T::BLCK_SIZE;
    let (count, rows) = (tokens.len() / columns, weights.len() / blocks);
    assert_eq!((tokens.len(), weights.len()), (count * columns, rows * blocks), "whole tokens and rows");
    let mut rounded = vec![T::VecDotType::zeros(); count * blocks];
    T::VecDotType::from_float(tokens, &mut rounded);
    let out = Products::new(count * rows);
    let token = |number: usize| &rounded[number * blocks..(number + 1) * blocks];
    let row = |number: usize| &weights[number * blocks..(number + 1) * blocks];
    let put = |token: usize, row: usize, value: f32| out.put(token * rows + row, value);
    let quads = rows / QUAD;
    let shared = size_of_val(weights) * count >= SHARED_BYTES;
    for start in (0..count).step_by(BATCH) {
        let batch = start..count.min(start + BATCH);
        let multiply = |range: Range<usize>| {
            for first in range.map(|quad| quad * QUAD) {
                let rows = [0, 1, 2, 3].map(|next| row(first + next));
                let put =
                    |token: usize, dots: [f32; QUAD]| (first..).zip(dots).for_each(|(row, dot)| put(token, row, dot));
                let tiles = batch.len() / TILE * TILE;
                for at in batch.clone().take(tiles).step_by(TILE) {
                    let dots = T::dots(rows, [0, 1, 2, 3].map(|next| token(at + next)));
                    (at..).zip(dots).for_each(|(at, dots)| put(at, dots));
                }
                for at in batch.start + tiles..batch.end {
                    let [dots] = T::dots(rows, [token(at)]);
                    put(at, dots);
                }
            }
        };
        match shared {
            true => barrier_pool().execute_chunked(quads, multiply),
            false => multiply(0..quads),
        }
    }
    for last in quads * QUAD..rows {
        (0..count).for_each(|number| put(number, last, T::vec_dot(columns, row(last), token(number))));
    }
    out.into_values()
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::k_quants::{BlockQ4K, BlockQ5_0};
    use proptest::prelude::*;

    use super::*;
    #[cfg(target_arch = "x86_64")]
    use crate::weights::block_dot::{WeightsQ4_0, WeightsQ8_0};

    /// Compares with products one by one.
    fn agree<T: RowBlocks>(count: usize, rows: usize, blocks: usize) {
        let columns = blocks * T::BLCK_SIZE;
        let numbers = |len: usize, salt: f32| (0..len).map(|i| (i as f32 * salt).sin()).collect::<Vec<f32>>();
        let tokens = numbers(count * columns, 0.37);
        let mut weights = vec![T::zeros(); rows * blocks];
        T::from_float(&numbers(rows * columns, 0.73), &mut weights);
        let found = matmul(columns, &tokens, &weights);
        for (number, token) in tokens.chunks_exact(columns).enumerate() {
            let mut rounded = vec![T::VecDotType::zeros(); blocks];
            T::VecDotType::from_float(token, &mut rounded);
            let dots = weights.chunks_exact(blocks).map(|row| T::vec_dot(columns, row, &rounded).to_bits());
            let found = found[number * rows..(number + 1) * rows].iter().map(|value| value.to_bits());
            assert!(found.eq(dots), "token {number} of {count}, {rows} rows of {blocks} blocks of {:?}", T::DTYPE);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        // Up to twice the rows times tokens from which on threads share them, and three batches.
        #[test]
        fn products_are_what_they_are_one_by_one(count in 0usize..140, rows in 0usize..70, blocks in 1usize..9) {
            #[cfg(target_arch = "x86_64")]
            {
                agree::<WeightsQ4_0>(count, rows, blocks);
                agree::<WeightsQ8_0>(count, rows, blocks);
            }
            agree::<BlockQ5_0>(count, rows, 2 * blocks);
            agree::<BlockQ4K>(count, rows, blocks);
        }
    }
}
