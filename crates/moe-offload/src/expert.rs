//! One expert: its shape, its weights, its arithmetic.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::silu;

use crate::{OffloadError, Result};

/// Sizes of the experts of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// Number of MoE layers.
    pub layers: usize,
    /// Experts a layer.
    pub experts: usize,
    /// Width of the tokens.
    pub hidden: usize,
    /// Width inside an expert.
    pub intermediate: usize,
}

impl ExpertShape {
    /// Checks that every size is at least 1, and that ids of layers and experts are u16.
    pub(crate) fn check(&self) -> Result<()> {
        let ids = usize::from(u16::MAX);
        let sizes = [
            ("layers", self.layers, ids),
            ("experts", self.experts, ids),
            ("hidden size", self.hidden, usize::MAX),
            ("intermediate size", self.intermediate, usize::MAX),
        ];
        match sizes.into_iter().find(|&(_, value, max)| value == 0 || value > max) {
            Some((field, value, max)) => Err(OffloadError::Size { field, value, max }),
            None => Ok(()),
        }
    }

    /// Shapes of gate, up and down projection, `[out, in]`.
    pub fn projections(&self) -> [(usize, usize); 3] {
        let (h, i) = (self.hidden, self.intermediate);
        [(i, h), (i, h), (h, i)]
    }

    /// Bytes of one expert in `dtype`.
    pub fn expert_bytes(&self, dtype: DType) -> usize {
        3 * self.hidden * self.intermediate * dtype.size_in_bytes()
    }
}

/// Weights of one SwiGLU expert, each projection `[out, in]` in its own storage.
#[derive(Clone, Debug)]
pub struct ExpertWeights {
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl ExpertWeights {
    /// Creates an expert from `gate` and `up`, `[intermediate, hidden]`, and `down`, `[hidden, intermediate]`.
    ///
    /// # Errors
    /// [`OffloadError::Shape`] if the shapes do not fit together.
    pub fn new(gate: Tensor, up: Tensor, down: Tensor) -> Result<ExpertWeights> {
        let (intermediate, hidden) = gate.dims2()?;
        let shape = ExpertShape { layers: 1, experts: 1, hidden, intermediate };
        for ((name, tensor), dims) in
            ["gate", "up", "down"].into_iter().zip([&gate, &up, &down]).zip(shape.projections())
        {
            if tensor.dims() != [dims.0, dims.1] {
                return Err(OffloadError::Shape {
                    name: name.to_owned(),
                    found: tensor.dims().to_vec(),
                    expected: vec![dims.0, dims.1],
                });
            }
        }
        Ok(ExpertWeights { gate, up, down })
    }

    /// The projections: gate, up, down.
    pub fn projections(&self) -> [&Tensor; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// The same weights on `device`; nothing is copied if they are there.
    ///
    /// # Errors
    /// A device that has no room.
    pub fn to_device(&self, device: &Device) -> Result<ExpertWeights> {
        let [gate, up, down] = self.projections().map(|projection| projection.to_device(device));
        Ok(ExpertWeights { gate: gate?, up: up?, down: down? })
    }

    /// Sends tokens `[tokens, hidden]` through the expert.
    ///
    /// # Formula
    /// `down · (silu(gate · x) ⊙ (up · x))`
    ///
    /// # Errors
    /// A tensor operation that failed.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let gate = silu(&tokens.matmul(&self.gate.t()?)?)?;
        let up = tokens.matmul(&self.up.t()?)?;
        Ok((gate * up)?.matmul(&self.down.t()?)?)
    }
}
