//! RMSNorm.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};

use crate::Result;
use crate::kernels::Kernels;

/// `x / sqrt(mean(x²) + eps) ⊙ weight` over the last dimension (Zhang and Sennrich 2019, arXiv 1910.07467).
#[derive(Clone, Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    pub(crate) fn new(width: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<RmsNorm> {
        let weight = vb.get_with_hints(width, "weight", Init::Const(1.0))?;
        // The precision that the kernels take.
        #[expect(clippy::cast_possible_truncation)]
        let eps = eps as f32;
        Ok(RmsNorm { weight, eps })
    }

    pub(crate) fn forward(&self, x: &Tensor, kernels: Kernels) -> Result<Tensor> {
        kernels.rms_norm(x, &self.weight, self.eps)
    }
}
