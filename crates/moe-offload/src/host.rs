//! Experts in host memory.

use moe_trace::{ExpertId, LayerId};

use crate::store::expert_index;
use crate::{ExpertShape, ExpertStore, ExpertWeights, Result, WeightType};

/// An [`ExpertStore`] that holds all weights as host tensors; a fetch copies nothing.
#[derive(Debug)]
pub struct HostStore {
    shape: ExpertShape,
    weight_type: WeightType,
    /// `[layers x experts]`.
    experts: Vec<ExpertWeights>,
}

impl HostStore {
    /// Reads every expert of another store into host memory.
    ///
    /// # Errors
    /// [`OffloadError::Size`](crate::OffloadError::Size) for a shape that no model has; the first fetch that fails.
    pub fn from_store(store: &dyn ExpertStore) -> Result<HostStore> {
        let shape = store.shape();
        shape.check()?;
        let mut experts = Vec::with_capacity(shape.layers * shape.experts);
        for layer in (0..).take(shape.layers).map(LayerId) {
            for expert in (0..).take(shape.experts).map(ExpertId) {
                experts.push(store.fetch(layer, expert)?);
            }
        }
        Ok(HostStore { shape, weight_type: store.weight_type(), experts })
    }
}

impl ExpertStore for HostStore {
    fn shape(&self) -> ExpertShape {
        self.shape
    }

    fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        Ok(self.experts[expert_index(self.shape, layer, expert)?].clone())
    }
}
