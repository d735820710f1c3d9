//! Fused operations for inference and their differentiable forms for training.

use candle_core::{D, Tensor};
use candle_nn::{ops, rotary_emb};

use crate::Result;

/// Which form of an operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// One pass over the data, no gradients.
    Fused,
    /// Gradients reach every argument.
    Differentiable,
}

impl Kernels {
    /// RMSNorm over the last dimension.
    pub(crate) fn rms_norm(self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        Ok(match self {
            Kernels::Fused => ops::rms_norm(x, weight, eps)?,
            Kernels::Differentiable => ops::rms_norm_slow(x, weight, eps)?,
        })
    }

    /// Rotary embedding of `x`, `[batch, heads, length, head_dim]`, by `cos` and `sin`, `[length, head_dim / 2]`.
    pub(crate) fn rope(self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Kernels::Fused => rotary_emb::rope(x, cos, sin)?,
            Kernels::Differentiable => rotary_emb::rope_slow(x, cos, sin)?,
        })
    }

    /// Softmax over the last dimension.
    pub(crate) fn softmax(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Kernels::Fused => ops::softmax_last_dim(x)?,
            Kernels::Differentiable => ops::softmax(x, D::Minus1)?,
        })
    }
}
