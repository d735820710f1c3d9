//! Rotary position embedding.

use candle_core::{DType, Device, Tensor};

use crate::kernels::Kernels;
use crate::{OlmoeConfig, Result};

/// Cosines and sines of every position (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Hugging Face.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    /// `[max_position_embeddings, head_dim / 2]`.
    cos: Tensor,
    /// `[max_position_embeddings, head_dim / 2]`.
    sin: Tensor,
}

impl Rope {
    pub(crate) fn new(config: &OlmoeConfig, dtype: DType, device: &Device) -> Result<Rope> {
        let (positions, head_dim) = (config.params().max_position_embeddings, config.head_dim());
        // Single precision throughout, as the reference computes it.
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
        let inverse: Vec<f32> = (0..head_dim)
            .step_by(2)
            .map(|i| 1.0 / (config.params().rope_theta as f32).powf(i as f32 / head_dim as f32))
            .collect();
        let inverse = Tensor::from_vec(inverse, (1, head_dim / 2), device)?;
        let end = u32::try_from(positions).expect("checked in OlmoeConfig::new");
        let position = Tensor::arange(0u32, end, device)?.to_dtype(DType::F32)?.reshape((positions, 1))?;
        let angle = position.matmul(&inverse)?;
        Ok(Rope { cos: angle.cos()?.to_dtype(dtype)?, sin: angle.sin()?.to_dtype(dtype)? })
    }

    /// Rotates `x`, contiguous `[batch, heads, length, head_dim]`, whose first token stands at position `start`.
    pub(crate) fn rotate(&self, x: &Tensor, start: usize, kernels: Kernels) -> Result<Tensor> {
        let length = x.dim(2)?;
        kernels.rope(x, &self.cos.narrow(0, start, length)?, &self.sin.narrow(0, start, length)?)
    }
}
