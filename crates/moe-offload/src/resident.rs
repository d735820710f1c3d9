//! Every expert on the compute device.

use candle_core::Tensor;
use moe_trace::{ExpertId, LayerId};

use crate::bank::ExpertBank;
use crate::dispatch::Dispatch;
use crate::error::{OffloadError, Result};
use crate::expert::{ExpertWeights, forward_each};
use crate::routes::Routes;
use crate::store::ExpertStore;

/// An [`ExpertBank`] that holds all experts where they are computed: the baseline.
#[derive(Clone, Debug)]
pub struct ResidentExperts {
    layers: Vec<Vec<ExpertWeights>>,
}

impl ResidentExperts {
    /// Creates a bank of the experts of each layer.
    pub fn new(layers: Vec<Vec<ExpertWeights>>) -> ResidentExperts {
        ResidentExperts { layers }
    }

    /// Takes every expert of a store, where it is computed in host memory; those that are there are not copied.
    ///
    /// # Errors
    /// The first fetch that fails, or gives weights of another shape or type than the store says.
    pub fn from_store(store: &dyn ExpertStore) -> Result<ResidentExperts> {
        store.check()?;
        let shape = store.shape();
        let experts = |layer| (0..).take(shape.experts).map(move |expert| store.fetch_checked(layer, ExpertId(expert)));
        let layers = (0..).take(shape.layers).map(|layer| experts(LayerId(layer)).collect());
        Ok(ResidentExperts { layers: layers.collect::<Result<_>>()? })
    }
}

impl ExpertBank for ResidentExperts {
    fn forward(&self, layer: LayerId, hidden: &Tensor, routes: &Routes) -> Result<Tensor> {
        let layers = self.layers.len();
        let experts = self.layers.get(layer.index()).ok_or(OffloadError::LayerOutOfRange { layer, layers })?;
        let dispatch = Dispatch::new(layer, hidden.dim(0)?, routes, experts.len())?;
        if routes.tokens() == 0 {
            return Ok(hidden.clone());
        }
        let groups = dispatch.groups().iter().enumerate();
        let groups: Vec<_> = groups.map(|(number, group)| (&experts[group.expert], dispatch.rows(number))).collect();
        dispatch.combine(layer, forward_each(hidden, &groups)?, hidden, routes)
    }
}
