//! Experts in host memory.

use moe_trace::{ExpertId, LayerId};

use super::expert_store::ExpertStore;
use crate::error::{OffloadError, Result};
use crate::expert::{ExpertShape, ExpertTypes, ExpertWeights};

/// An [`ExpertStore`] that holds all weights in host memory; a fetch copies nothing, and a fetched quantized expert keeps the
/// memory of its layer.
#[derive(Debug)]
pub struct HostStore {
    shape: ExpertShape,
    types: Vec<ExpertTypes>,
    /// `[layers x experts]`.
    experts: Vec<ExpertWeights>,
}

impl HostStore {
    /// Reads every expert of another store into host memory.
    ///
    /// # Errors
    /// [`OffloadError::Size`] for a shape that no model has; the first expert that cannot be read.
    pub fn from_store(store: &dyn ExpertStore) -> Result<HostStore> {
        HostStore::within(store, u64::MAX, &mut |_, _| {})
    }

    /// Reads every expert of another store into at most `limit` bytes of host memory; `progress` is told after each the
    /// bytes read so far and the bytes of all.
    ///
    /// # Errors
    /// [`OffloadError::HostLimit`] before anything is read, [`OffloadError::HostMemory`], and as
    /// [`from_store`](Self::from_store).
    pub fn within(store: &dyn ExpertStore, limit: u64, progress: &mut dyn FnMut(u64, u64)) -> Result<HostStore> {
        store.check()?;
        let (shape, types, needed) = (store.shape(), store.weight_types().to_vec(), store.bytes());
        if needed > limit {
            return Err(OffloadError::HostLimit { needed, limit });
        }
        let (mut experts, mut done) = (Vec::with_capacity(shape.layers * shape.experts), 0);
        for (layer, &types) in (0..).map(LayerId).zip(&types) {
            let experts_of_layer = ExpertWeights::zeros(shape.experts, shape, types)?.into_iter();
            for (mut weights, expert) in experts_of_layer.zip((0..).map(ExpertId)) {
                store.read_ahead(layer, expert)?;
                store.load_into(layer, expert, &mut weights)?;
                experts.push(weights);
                done += shape.expert_bytes(types) as u64;
                progress(done, needed);
            }
        }
        Ok(HostStore { shape, types, experts })
    }
}

impl ExpertStore for HostStore {
    fn shape(&self) -> ExpertShape {
        self.shape
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        &self.types
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        Ok(self.experts[self.shape.index(layer, expert)?].clone())
    }
}
