//! One token times a matrix of numbers, on all threads.

use std::ops::Range;

use candle_core::utils::barrier_pool;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Shape, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

use super::ask_ahead::{AHEAD_BYTES, ask_ahead};
use super::block_matmul::QUAD;
use super::products::Products;

/// Bytes of a matrix from which on threads share it: below, waking them takes longer (measured with one such product a step).
const SHARED_BYTES: usize = 1 << 22;
/// Weights that are converted at once.
const CONVERTED: usize = 512;
/// Sums of a row that do not wait for each other.
const SUMS: usize = 2;

/// The product of a token, `[1, columns]`, and a matrix, `[rows, columns]`: `[1, rows]`.
///
/// candle's matrix product reads the matrix on one thread then, and converts one of bf16 as a whole before.
#[derive(Debug)]
pub(super) struct Matvec;

impl Matvec {
    /// Whether it computes `tokens` times `weights`, of one type or the tokens of f32; everything else is candle's.
    pub(super) fn takes(tokens: &Tensor, weights: &Tensor) -> bool {
        let one = matches!(tokens.dims(), &[1, columns] if columns > 0);
        let lies_here = tokens.device().is_cpu() && weights.device().is_cpu() && weights.is_contiguous();
        let known = matches!(weights.dtype(), DType::F32 | DType::F16 | DType::BF16);
        let known = known && (tokens.dtype() == DType::F32 || tokens.dtype() == weights.dtype());
        one && lies_here && known && tokens.is_contiguous()
    }
}

impl CustomOp2 for Matvec {
    fn name(&self) -> &'static str {
        "matvec"
    }

    fn cpu_fwd(
        &self,
        token: &CpuStorage,
        token_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, columns) = weights_layout.shape().dims2()?;
        if token_layout.shape().dims2()? != (1, columns) {
            candle_core::bail!("a token {:?} meets rows of {columns}", token_layout.dims());
        }
        let (Some(token_at), Some(weights_at)) =
            (token_layout.contiguous_offsets(), weights_layout.contiguous_offsets())
        else {
            candle_core::bail!("token and weights must be contiguous")
        };
        let (token_at, weights_at) = (token_at.0..token_at.1, weights_at.0..weights_at.1);
        let out = match (token, weights) {
            (CpuStorage::F32(token), CpuStorage::F32(weights)) => {
                CpuStorage::F32(multiply(&token[token_at], &weights[weights_at]))
            }
            (CpuStorage::F32(token), CpuStorage::F16(weights)) => {
                CpuStorage::F32(multiply(&token[token_at], &weights[weights_at]))
            }
            (CpuStorage::F32(token), CpuStorage::BF16(weights)) => {
                CpuStorage::F32(multiply(&token[token_at], &weights[weights_at]))
            }
            (CpuStorage::F16(token), CpuStorage::F16(weights)) => {
                let sums = multiply(&token[token_at].to_f32_vec(), &weights[weights_at]);
                CpuStorage::F16(sums.into_iter().map(f16::from_f32).collect())
            }
            (CpuStorage::BF16(token), CpuStorage::BF16(weights)) => {
                let sums = multiply(&token[token_at].to_f32_vec(), &weights[weights_at]);
                CpuStorage::BF16(sums.into_iter().map(bf16::from_f32).collect())
            }
            _ => candle_core::bail!("a token is f32 or of the type of the weights, which are f32, f16 or bf16"),
        };
        Ok((out, (1, rows).into()))
    }

    fn bwd(
        &self,
        token: &Tensor,
        weights: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let of_token = gradient.matmul(&weights.to_dtype(gradient.dtype())?)?;
        Ok((Some(of_token), Some(gradient.t()?.matmul(token)?.to_dtype(weights.dtype())?)))
    }
}

/// Weights that are numbers.
trait Number: Copy + Sync {
    /// Puts the dot products of rows, one after the other in memory, with a token where they belong, from place `first` on;
    /// each is what it is by itself.
    fn multiply(rows: &[Self], token: &[f32], out: &Products, first: usize);
}

impl Number for f32 {
    fn multiply(rows: &[f32], token: &[f32], out: &Products, first: usize) {
        Arch::new().dispatch(Rows { rows, token, put: |row: usize, dot| out.put(first + row, dot) });
    }
}

/// Converts a piece of a row at a time.
macro_rules! converted {
    ($type:ty) => {
        impl Number for $type {
            fn multiply(rows: &[$type], token: &[f32], out: &Products, first: usize) {
                let mut wide = [0f32; CONVERTED];
                for (row, place) in rows.chunks_exact(token.len()).zip(first..) {
                    let mut sum = 0.0;
                    for (weights, token) in row.chunks(CONVERTED).zip(token.chunks(CONVERTED)) {
                        let wide = &mut wide[..weights.len()];
                        weights.convert_to_f32_slice(wide);
                        Arch::new().dispatch(Rows { rows: wide, token, put: |_, dot| sum += dot });
                    }
                    out.put(place, sum);
                }
            }
        }
    };
}

converted!(f16);
converted!(bf16);

/// Dot products of the rows of `weights` with a token.
fn multiply<T: Number>(token: &[f32], weights: &[T]) -> Vec<f32> {
    let columns = token.len();
    let count = weights.len() / columns;
    let out = Products::new(count);
    let rows =
        |rows: Range<usize>| T::multiply(&weights[rows.start * columns..rows.end * columns], token, &out, rows.start);
    match size_of_val(weights) < SHARED_BYTES {
        true => rows(0..count),
        false => barrier_pool().execute_chunked(count, rows),
    }
    out.into_values()
}

/// Rows one after the other, a token as wide as one, and where the number of a row and its dot product go.
struct Rows<'a, P> {
    rows: &'a [f32],
    token: &'a [f32],
    put: P,
}

impl<P: FnMut(usize, f32)> WithSimd for Rows<'_, P> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let columns = self.token.len();
        let mut quads = self.rows.chunks_exact(QUAD * columns);
        let mut number = 0;
        let ahead = if QUAD * size_of_val(self.token) <= AHEAD_BYTES { QUAD * size_of_val(self.token) } else { 0 };
        for quad in &mut quads {
            ask_ahead(quad.as_ptr(), ahead);
            let dots =
                dots::<S, QUAD>(simd, [0, 1, 2, 3].map(|row| &quad[row * columns..(row + 1) * columns]), self.token);
            for dot in dots {
                (self.put)(number, dot);
                number += 1;
            }
        }
        for row in quads.remainder().chunks_exact(columns) {
            let [dot] = dots::<S, 1>(simd, [row], self.token);
            (self.put)(number, dot);
            number += 1;
        }
    }
}

#[inline(always)]
fn dots<S: Simd, const N: usize>(simd: S, rows: [&[f32]; N], token: &[f32]) -> [f32; N] {
    let (token, token_rest) = S::as_simd_f32s(token);
    let rows = rows.map(|row| S::as_simd_f32s(row));
    let (pairs, last) = token.as_chunks::<SUMS>();
    let mut sums = [[simd.splat_f32s(0.0); SUMS]; N];
    for (at, token) in (0..).step_by(SUMS).zip(pairs) {
        for (sums, (row, _)) in sums.iter_mut().zip(rows) {
            for next in 0..SUMS {
                sums[next] = simd.mul_add_f32s(row[at + next], token[next], sums[next]);
            }
        }
    }
    let mut totals = [0.0; N];
    for (total, (sums, (row, row_rest))) in totals.iter_mut().zip(sums.into_iter().zip(rows)) {
        let mut sum = sums[0];
        sums[1..].iter().for_each(|&other| sum = simd.add_f32s(sum, other));
        for (&weights, &token) in row[pairs.len() * SUMS..].iter().zip(last) {
            sum = simd.mul_add_f32s(weights, token, sum);
        }
        let rest: f32 = row_rest.iter().zip(token_rest).map(|(weight, token)| weight * token).sum();
        *total = simd.reduce_sum_f32s(sum) + rest;
    }
    totals
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;

    fn numbers(count: usize, salt: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 31 + salt) as f32 * 0.37).sin()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_the_sum_of_products(rows in 1usize..70, columns in 1usize..1300, dtype in 0usize..3) {
            let dtype = [DType::F32, DType::F16, DType::BF16][dtype];
            let tensor = |count: usize, salt, dims: (usize, usize)| {
                Tensor::from_vec(numbers(count, salt), dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
            };
            let (weights, token) = (tensor(rows * columns, 0, (rows, columns)), tensor(columns, 1, (1, columns)));
            prop_assert!(Matvec::takes(&token, &weights));
            let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap();
            let product = token.apply_op2_no_bwd(&weights, &Matvec).unwrap();
            prop_assert_eq!(product.dtype(), dtype);
            let exact = wide(&token).matmul(&wide(&weights).t().unwrap()).unwrap().to_vec2::<f64>().unwrap();
            let found = wide(&product).to_vec2::<f64>().unwrap();
            // Half a step of the type at the size of the result, and what sums of products of at most 1 in f32 may be off.
            let step = match dtype { DType::F32 => 0.0, DType::F16 => 2f64.powi(-11), _ => 2f64.powi(-8) };
            let sums = 1e-6 * columns as f64;
            for (found, exact) in found[0].iter().zip(&exact[0]) {
                prop_assert!((found - exact).abs() <= sums + step * exact.abs(), "{found} is not {exact}");
            }
        }
    }

    #[test]
    fn gradients_are_those_of_a_matrix_product() {
        let weights = Var::from_vec(numbers(12, 0), (3, 4), &Device::Cpu).unwrap();
        let token = Var::from_vec(numbers(4, 1), (1, 4), &Device::Cpu).unwrap();
        let upstream = Tensor::from_vec(numbers(3, 2), (1, 3), &Device::Cpu).unwrap();
        let gradients = |product: Tensor| {
            let gradients = (product * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
            let of = |var: &Var| gradients.get(var).unwrap().to_vec2::<f32>().unwrap();
            (of(&token), of(&weights))
        };
        let ours = gradients(token.apply_op2(&weights, Matvec).unwrap());
        assert_eq!(ours, gradients(token.matmul(&weights.t().unwrap()).unwrap()));
    }

    #[test]
    fn several_tokens_are_left_to_candle() {
        let ones = |rows: usize| Tensor::ones((rows, 4), DType::F32, &Device::Cpu).unwrap();
        assert!(Matvec::takes(&ones(1), &ones(3)));
        assert!(!Matvec::takes(&ones(2), &ones(3)));
        assert!(!Matvec::takes(&ones(1), &ones(3).t().unwrap().contiguous().unwrap().t().unwrap()));
    }
}
