//! A matrix that tokens are multiplied with.

use candle_core::Tensor;
use moe_offload::{OffloadError, Projection};

use crate::{ModelError, Result};

/// A linear map without a bias, with gradients where its weights have some.
#[derive(Clone, Debug)]
pub(crate) struct Linear(Projection);

impl Linear {
    /// The map of `weights`, `[out, in]`.
    pub(crate) fn new(weights: Tensor) -> Linear {
        Linear(Projection::Dense(weights))
    }

    /// Multiplies tokens `[tokens, in]`: `[tokens, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x).map_err(|error| match error {
            OffloadError::Tensor(error) => ModelError::Tensor(error),
            other => ModelError::Experts(other),
        })
    }
}
