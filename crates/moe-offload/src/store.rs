//! Where the weights of experts live when they are not on the compute device.

use std::fmt;

use candle_core::DType;
use moe_trace::{ExpertId, LayerId};

use crate::{ExpertShape, ExpertWeights, OffloadError, Result};

/// A place that holds every expert of a model.
pub trait ExpertStore: fmt::Debug + Send + Sync {
    /// Sizes of the experts.
    fn shape(&self) -> ExpertShape;

    /// Type of the weights that [`fetch`](Self::fetch) returns.
    fn dtype(&self) -> DType;

    /// Returns the weights of an expert in host memory.
    ///
    /// # Errors
    /// An expert that does not exist; weights that cannot be read.
    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights>;
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
