//! The price of a miss in seconds.

use expert_cache::{CacheError, CostModel, ExpertKey, MissCost, Request};

use crate::error::Result;

/// Prices misses by a cost model: a load and an expert computed on the device, or an expert computed on the host.
///
/// ```
/// use std::sync::Arc;
/// use expert_cache::{CostModel, ExpertKey, Linear, MissCost, Overlap, Request};
/// use moe_offload::MissSeconds;
/// use moe_trace::ExpertSet;
///
/// let mut costs = CostModel::loads(vec![2e-3], Overlap::None);
/// costs.host_expert = Linear { call_seconds: 1e-3, seconds_each: 5e-4 };
/// let price = MissSeconds::new(costs, 1)?;
/// let wanted = ExpertSet::from_members(4, [3]);
/// assert_eq!(price.load(&Request::from(&wanted), ExpertKey(3)), 2e-3);
/// assert_eq!(price.host(&Request::from(&wanted), ExpertKey(3)), 1.5e-3);
/// # Ok::<(), moe_offload::OffloadError>(())
/// ```
#[derive(Clone, Debug)]
pub struct MissSeconds {
    costs: CostModel,
}

impl MissSeconds {
    /// Prices the misses of a model of `layers` MoE layers.
    ///
    /// # Errors
    /// [`CacheError::CostLayers`] if the costs are those of another number of layers.
    pub fn new(costs: CostModel, layers: usize) -> Result<MissSeconds> {
        let found = costs.load_seconds.len();
        if found == layers {
            Ok(MissSeconds { costs })
        } else {
            Err(CacheError::CostLayers { found, expected: layers }.into())
        }
    }
}

impl MissCost for MissSeconds {
    fn load(&self, request: &Request<'_>, expert: ExpertKey) -> f64 {
        let tokens = u64::from(request.uses(expert));
        self.costs.load_seconds[request.layer().index()] + self.costs.device_expert.seconds(1, tokens)
    }

    fn host(&self, request: &Request<'_>, expert: ExpertKey) -> f64 {
        self.costs.host_expert.seconds(1, u64::from(request.uses(expert)))
    }
}
