//! The part of the compute device's memory that caches experts.

use candle_core::{DType, Device, Tensor};
use expert_cache::SlotId;

use crate::{ExpertShape, ExpertWeights, Result};

/// Room for a few experts on the compute device; each slot owns one tensor a projection.
#[derive(Debug)]
pub(crate) struct SlotTensors {
    slots: Vec<ExpertWeights>,
    device: Device,
}

impl SlotTensors {
    /// Allocates `capacity` slots.
    pub(crate) fn new(capacity: usize, shape: ExpertShape, dtype: DType, device: &Device) -> Result<SlotTensors> {
        let slot = || {
            let [gate, up, down] = shape.projections().map(|dims| Tensor::zeros(dims, dtype, device));
            ExpertWeights::new(gate?, up?, down?)
        };
        let slots = (0..capacity).map(|_| slot()).collect::<Result<_>>()?;
        Ok(SlotTensors { slots, device: device.clone() })
    }

    /// The expert in a slot.
    pub(crate) fn get(&self, slot: SlotId) -> &ExpertWeights {
        &self.slots[slot.index()]
    }

    /// Copies an expert into a slot. On an error the slot's content is undefined.
    pub(crate) fn load(&self, slot: SlotId, expert: &ExpertWeights) -> Result<()> {
        for (to, from) in self.slots[slot.index()].projections().into_iter().zip(expert.projections()) {
            to.slice_set(&from.to_device(&self.device)?, 0, 0)?;
        }
        Ok(())
    }
}
