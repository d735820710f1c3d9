//! Products of tokens and matrices of quantized blocks, on all threads.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use candle_core::quantized::{GgmlType, k_quants};
use candle_core::utils::barrier_pool;

/// Rows that are multiplied together.
pub(crate) const QUAD: usize = 4;
/// Tokens that are multiplied together.
const TILE: usize = 4;
/// Tokens whose quads follow each other, so that what they need stays in the processor's caches.
const BATCH: usize = 64;

/// Bytes of a matrix, times tokens, from which on threads share it: below, waking them takes longer.
const SHARED_BYTES: usize = 1 << 18;

/// Blocks whose rows are multiplied with several tokens at once. Each product is what it is by itself.
pub(crate) trait RowBlocks: GgmlType {
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
pub(crate) fn matmul<T: RowBlocks>(columns: usize, tokens: &[f32], weights: &[T]) -> Vec<f32> {
    let blocks = columns / T::BLCK_SIZE;
    let (count, rows) = (tokens.len() / columns, weights.len() / blocks);
    assert_eq!((tokens.len(), weights.len()), (count * columns, rows * blocks), "whole tokens and rows");
    let mut rounded = vec![T::VecDotType::zeros(); count * blocks];
    T::VecDotType::from_float(tokens, &mut rounded);
    // Every product is written once, by whichever thread.
    let out: Vec<AtomicU32> = (0..count * rows).map(|_| AtomicU32::new(0)).collect();
    let token = |number: usize| &rounded[number * blocks..(number + 1) * blocks];
    let row = |number: usize| &weights[number * blocks..(number + 1) * blocks];
    let put = |token: usize, row: usize, value: f32| out[token * rows + row].store(value.to_bits(), Ordering::Relaxed);
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
    out.into_iter().map(|bits| f32::from_bits(bits.into_inner())).collect()
}
