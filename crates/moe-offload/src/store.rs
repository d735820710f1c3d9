//! Where the weights of experts live when they are not on the compute device.

use std::fmt;

use moe_trace::{ExpertId, LayerId};

use crate::{ExpertShape, ExpertWeights, OffloadError, Result, WeightType};

/// A place that holds every expert of a model.
pub trait ExpertStore: fmt::Debug + Send + Sync {
    /// Sizes of the experts.
    fn shape(&self) -> ExpertShape;

    /// Type of the weights that the store hands out.
    fn weight_type(&self) -> WeightType;

    /// Returns the weights of an expert in host memory, to compute with.
    ///
    /// # Errors
    /// An expert that does not exist; weights that cannot be read.
    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights>;

    /// Lends the bytes of an expert's gate, up and down projection, row by row in [`weight_type`](Self::weight_type), to
    /// copy from; a store that has them as they are needed lends them from where they lie.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch), and what `read` says.
    fn with_bytes(
        &self,
        layer: LayerId,
        expert: ExpertId,
        read: &mut dyn FnMut([&[u8]; 3]) -> Result<()>,
    ) -> Result<()> {
        self.fetch(layer, expert)?.with_bytes(read)
    }
}

/// Place of an expert among `layers x experts`, if it exists.
pub(crate) fn expert_index(shape: ExpertShape, layer: LayerId, expert: ExpertId) -> Result<usize> {
    if layer.index() >= shape.layers {
        return Err(OffloadError::LayerOutOfRange { layer, layers: shape.layers });
    }
    if expert.index() >= shape.experts {
        return Err(OffloadError::NoSuchExpert { layer, expert, experts: shape.experts });
    }
    Ok(layer.index() * shape.experts + expert.index())
}
