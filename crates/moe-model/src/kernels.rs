//! The operations that have a fused and a composed form, and the choice between the forms.

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{ops, rotary_emb};

use crate::{Result, fused};

/// What the forms of the operations must allow.
///
/// f32 on the CPU has forms that are fused and differentiable; elsewhere it is one or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// Inference.
    Fused,
    /// Gradients reach every argument.
    Differentiable,
}

/// Which keys of a block the queries of a block see: those at their own position and before it.
#[derive(Clone, Debug)]
pub(crate) struct CausalMask {
    /// Positions of the queries.
    queries: Range<usize>,
    /// Positions of the keys.
    keys: Range<usize>,
    /// f32 `[queries, keys]`: 0 where a query sees a key, else negative infinity; none where no operation needs it.
    tensor: Option<Tensor>,
}

impl CausalMask {
    /// The mask of queries and keys at consecutive positions.
    pub(crate) fn new(queries: Range<usize>, keys: Range<usize>, device: &Device) -> Result<CausalMask> {
        let mask = CausalMask { queries, keys, tensor: None };
        let needed = mask.seen(0) < mask.keys.len() && !device.is_cpu();
        Ok(CausalMask { tensor: needed.then(|| mask.to_tensor(device)).transpose()?, ..mask })
    }

    /// Number of keys that a query sees: the first ones.
    pub(crate) fn seen(&self, query: usize) -> usize {
        (self.queries.start + query + 1).clamp(self.keys.start, self.keys.end) - self.keys.start
    }

    /// Number of keys in the block.
    pub(crate) fn keys(&self) -> usize {
        self.keys.len()
    }

    fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        let row = |query| {
            let seen = self.seen(query);
            (0..self.keys.len()).map(move |key| if key < seen { 0.0 } else { f32::NEG_INFINITY })
        };
        let mask: Vec<f32> = (0..self.queries.len()).flat_map(row).collect();
        Ok(Tensor::from_vec(mask, (self.queries.len(), self.keys.len()), device)?)
    }
}

/// One block of keys in a softmax that is taken block by block; f32 tensors.
#[derive(Debug)]
pub(crate) struct ExpBlock {
    /// `exp(scale · (scores - largest))`, 0 for hidden keys, `[batch, heads, queries, keys]`.
    pub(crate) weights: Tensor,
    /// Largest score of each query in this block and those before it, `[batch, heads, queries, 1]`.
    pub(crate) largest: Tensor,
    /// Sum of each query's weights in this block, `[batch, heads, queries, 1]`.
    pub(crate) sums: Tensor,
}

impl Kernels {
    /// `RMSNorm` over the last dimension.
    pub(crate) fn rms_norm(self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        Ok(match self {
            _ if fused::takes(x) => x.apply_op2(weight, fused::RmsNorm { eps })?,
            Kernels::Fused => ops::rms_norm(x, weight, eps)?,
            Kernels::Differentiable => ops::rms_norm_slow(x, weight, eps)?,
        })
    }

    /// Rotary embedding of `x`, `[batch, heads, length, head_dim]`, by `cos` and `sin`, `[length, head_dim / 2]`.
    pub(crate) fn rope(self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        Ok(match self {
            _ if fused::takes(x) => x.apply_op1(fused::Rotate { cos: cos.clone(), sin: sin.clone(), sign: 1.0 })?,
            Kernels::Fused => rotary_emb::rope(x, cos, sin)?,
            Kernels::Differentiable => rotary_emb::rope_slow(x, cos, sin)?,
        })
    }

    /// `softmax(scale · scores)` over the keys that the mask lets each query see, computed in f32 as the reference does;
    /// `scores` is `[batch, heads, queries, keys]`.
    pub(crate) fn causal_softmax(self, scores: &Tensor, scale: f32, mask: &CausalMask) -> Result<Tensor> {
        let wide = scores.to_dtype(DType::F32)?;
        let weights = if fused::takes(&wide) {
            wide.apply_op1(fused::CausalSoftmax { scale, mask: mask.clone() })?
        } else {
            self.composed_softmax(&wide, scale, mask.tensor.as_ref())?
        };
        Ok(weights.to_dtype(scores.dtype())?)
    }

    fn composed_softmax(self, scores: &Tensor, scale: f32, mask: Option<&Tensor>) -> Result<Tensor> {
        let mut scores = (scores * f64::from(scale))?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        Ok(match self {
            Kernels::Fused => ops::softmax_last_dim(&scores)?,
            Kernels::Differentiable => ops::softmax(&scores, D::Minus1)?,
        })
    }
}

/// Weighs one block of keys, where `largest` has the largest scores of the blocks before it, if there are any. The first
/// block must have a key for every query.
pub(crate) fn causal_exp(scores: &Tensor, scale: f32, mask: &CausalMask, largest: Option<&Tensor>) -> Result<ExpBlock> {
    let wide = scores.to_dtype(DType::F32)?;
    match fused::takes(&wide) {
        true => Ok(fused::causal_exp(&wide, scale, mask, largest)?),
        false => composed_exp(&wide, scale, mask.tensor.as_ref(), largest),
    }
}

fn composed_exp(scores: &Tensor, scale: f32, mask: Option<&Tensor>, largest: Option<&Tensor>) -> Result<ExpBlock> {
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores.clone(),
    };
    let own = scores.max_keepdim(D::Minus1)?;
    let largest = largest.map_or_else(|| Ok(own.clone()), |before| own.maximum(before))?;
    let weights = (scores.broadcast_sub(&largest)? * f64::from(scale))?.exp()?;
    Ok(ExpBlock { sums: weights.sum_keepdim(D::Minus1)?, weights, largest })
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn random(shape: &[usize]) -> Var {
        Var::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    /// Asserts that two forms of an operation agree in value and in the gradients of the variables, given a gradient of
    /// random numbers.
    fn assert_agree(fused: &Tensor, composed: &Tensor, variables: &[&Var]) {
        let close = |a: &Tensor, b: &Tensor| {
            assert_eq!(a.dims(), b.dims());
            let error = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let size = b.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(error < 2e-6 * size.max(1.0), "{error:e} of {size}");
        };
        close(fused, composed);
        let upstream = random(fused.dims());
        let grads = |result: &Tensor| (result * upstream.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let (fused, composed) = (grads(fused), grads(composed));
        for variable in variables {
            close(fused.get(variable).unwrap(), composed.get(variable).unwrap());
        }
    }

    #[test]
    fn rms_norm_agrees_with_its_composed_form() {
        for (rows, width) in [(1, 1), (3, 8), (150, 19)] {
            let (x, weight) = (random(&[rows, width]), random(&[width]));
            let fused = Kernels::Differentiable.rms_norm(&x, &weight, 1e-3).unwrap();
            assert_agree(&fused, &ops::rms_norm_slow(&x, &weight, 1e-3).unwrap(), &[&x, &weight]);
        }
    }

    #[test]
    fn rope_agrees_with_its_composed_form() {
        let x = random(&[2, 3, 5, 8]);
        let angles = random(&[5, 4]);
        let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
        let fused = Kernels::Differentiable.rope(&x, &cos, &sin).unwrap();
        assert_agree(&fused, &rotary_emb::rope_slow(&x, &cos, &sin).unwrap(), &[&x]);
    }

    fn mask(queries: Range<usize>, keys: Range<usize>) -> (CausalMask, Tensor) {
        let mask = CausalMask::new(queries, keys, &Device::Cpu).unwrap();
        let tensor = mask.to_tensor(&Device::Cpu).unwrap();
        (mask, tensor)
    }

    #[test]
    fn causal_softmax_agrees_with_its_composed_form() {
        for (queries, keys) in [(1, 1), (1, 9), (7, 7), (4, 21)] {
            let x = random(&[2, 3, queries, keys]);
            let (mask, tensor) = mask(keys - queries..keys, 0..keys);
            let fused = Kernels::Differentiable.causal_softmax(&x, 0.7, &mask).unwrap();
            let composed = |kernels: Kernels| kernels.composed_softmax(&x, 0.7, Some(&tensor)).unwrap();
            assert_agree(&fused, &composed(Kernels::Differentiable), &[&x]);
            assert_agree(&fused, &composed(Kernels::Fused), &[]);
        }
    }

    #[test]
    fn causal_exp_agrees_with_its_composed_form() {
        // The first block, one that hides all keys from some queries, one that hides none.
        for (queries, keys, later) in [(4..9, 0..6, false), (4..9, 6..12, true), (20..25, 6..12, true)] {
            let x = random(&[2, 3, queries.len(), keys.len()]);
            let before = random(&[2, 3, queries.len(), 1]);
            let before = later.then(|| before.as_tensor());
            let (mask, tensor) = mask(queries, keys);
            let fused = causal_exp(&x, 0.7, &mask, before).unwrap();
            let composed = composed_exp(&x, 0.7, Some(&tensor), before).unwrap();
            for (fused, composed) in [
                (&fused.weights, &composed.weights),
                (&fused.largest, &composed.largest),
                (&fused.sums, &composed.sums),
            ] {
                assert_agree(fused, composed, &[]);
            }
        }
    }

    #[test]
    fn a_query_sees_a_key_less_than_the_next() {
        let hidden = f32::NEG_INFINITY;
        let rows = |queries, keys| mask(queries, keys).1.to_vec2::<f32>().unwrap();
        assert_eq!(rows(2..4, 0..4), [[0.0, 0.0, 0.0, hidden], [0.0; 4]]);
        assert_eq!(rows(2..4, 3..5), [[hidden, hidden], [0.0, hidden]]);
        assert_eq!(rows(2..4, 0..2), [[0.0; 2]; 2]);
    }
}
