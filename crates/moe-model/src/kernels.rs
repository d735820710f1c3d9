//! The operations that have a fused and a composed form, and the choice between the forms.

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

/// Which keys the queries of a block of attention see: the last query all, each earlier one a key less.
#[derive(Clone, Debug)]
pub(crate) struct CausalMask {
    queries: usize,
    /// f32 `[queries, keys]`: 0 where a query sees a key, else negative infinity; none where no operation needs it.
    tensor: Option<Tensor>,
}

impl CausalMask {
    /// The mask of `queries` consecutive tokens of which the last is token `keys - 1`.
    pub(crate) fn new(queries: usize, keys: usize, device: &Device) -> Result<CausalMask> {
        let needed = queries > 1 && !device.is_cpu();
        let tensor = needed.then(|| mask_tensor(queries, keys, device)).transpose()?;
        Ok(CausalMask { queries, tensor })
    }
}

fn mask_tensor(queries: usize, keys: usize, device: &Device) -> Result<Tensor> {
    let hidden = |query, key| key + queries > keys + query;
    let mask: Vec<f32> = (0..queries)
        .flat_map(|query| (0..keys).map(move |key| if hidden(query, key) { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Ok(Tensor::from_vec(mask, (queries, keys), device)?)
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
            wide.apply_op1(fused::CausalSoftmax { scale, queries: mask.queries })?
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

    #[test]
    fn causal_softmax_agrees_with_its_composed_form() {
        for (queries, keys) in [(1, 1), (1, 9), (7, 7), (4, 21)] {
            let x = random(&[2, 3, queries, keys]);
            let mask = CausalMask { queries, tensor: None };
            let fused = Kernels::Differentiable.causal_softmax(&x, 0.7, &mask).unwrap();
            let mask = mask_tensor(queries, keys, &Device::Cpu).unwrap();
            let composed = |kernels: Kernels| kernels.composed_softmax(&x, 0.7, Some(&mask)).unwrap();
            assert_agree(&fused, &composed(Kernels::Differentiable), &[&x]);
            assert_agree(&fused, &composed(Kernels::Fused), &[]);
        }
    }

    #[test]
    fn a_query_sees_a_key_less_than_the_next() {
        let mask = mask_tensor(2, 4, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(mask, [[0.0, 0.0, 0.0, f32::NEG_INFINITY], [0.0; 4]]);
    }
}
