//! Sizes of the experts of a model.

use moe_trace::{ExpertId, LayerId};

use super::types::ExpertTypes;
use crate::error::{OffloadError, Result};

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
        // Far beyond any model, and the bytes of an expert fit a usize.
        let width = 1 << 24;
        let sizes = [
            ("layers", self.layers, ids),
            ("experts", self.experts, ids),
            ("hidden size", self.hidden, width),
            ("intermediate size", self.intermediate, width),
        ];
        match sizes.into_iter().find(|&(_, value, max)| value == 0 || value > max) {
            Some((field, value, max)) => Err(OffloadError::Size { field, value, max }),
            None => Ok(()),
        }
    }

    /// Checks that the rows of every projection are whole blocks.
    pub(crate) fn check_blocks(&self, types: ExpertTypes) -> Result<()> {
        for (weights, (_, columns)) in types.each().into_iter().zip(self.projections()) {
            let block = weights.block_weights();
            if !columns.is_multiple_of(block) {
                return Err(OffloadError::Blocks { weights, columns, block });
            }
        }
        Ok(())
    }

    /// Returns the place of an expert among all `layers x experts`.
    ///
    /// # Errors
    /// [`OffloadError::LayerOutOfRange`], [`OffloadError::NoSuchExpert`].
    ///
    /// ```
    /// use moe_offload::ExpertShape;
    /// use moe_trace::{ExpertId, LayerId};
    /// let shape = ExpertShape { layers: 2, experts: 8, hidden: 4, intermediate: 4 };
    /// assert_eq!(shape.index(LayerId(1), ExpertId(3))?, 11);
    /// assert!(shape.index(LayerId(0), ExpertId(8)).is_err());
    /// # Ok::<(), moe_offload::OffloadError>(())
    /// ```
    pub fn index(&self, layer: LayerId, expert: ExpertId) -> Result<usize> {
        if layer.index() >= self.layers {
            return Err(OffloadError::LayerOutOfRange { layer, layers: self.layers });
        }
        if expert.index() >= self.experts {
            return Err(OffloadError::NoSuchExpert { layer, expert, experts: self.experts });
        }
        Ok(layer.index() * self.experts + expert.index())
    }

    /// Shapes of gate, up and down projection, `[out, in]`.
    pub fn projections(&self) -> [(usize, usize); 3] {
        let (h, i) = (self.hidden, self.intermediate);
        [(i, h), (i, h), (h, i)]
    }

    /// Bytes of one expert whose projections are stored as `types`.
    ///
    /// ```
    /// use moe_offload::{ExpertShape, WeightType};
    /// let gpt_oss = ExpertShape { layers: 24, experts: 32, hidden: 2880, intermediate: 2880 };
    /// assert_eq!(gpt_oss.expert_bytes(WeightType::Q4_0), 3 * 2880 * 2880 / 32 * 18);
    /// ```
    pub fn expert_bytes(&self, types: impl Into<ExpertTypes>) -> usize {
        self.projection_bytes(types).iter().sum()
    }

    /// Bytes of the gate, up and down projection of one expert.
    pub fn projection_bytes(&self, types: impl Into<ExpertTypes>) -> [usize; 3] {
        let (types, dims) = (types.into().each(), self.projections());
        [0, 1, 2].map(|which| types[which].bytes(dims[which].0, dims[which].1))
    }
}
