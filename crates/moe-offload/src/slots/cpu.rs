//! Slots in host memory.

use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use candle_core::Tensor;
use expert_cache::SlotId;
use moe_trace::{ExpertId, LayerId};

use super::expert_slots::{ExpertSlots, SlotGroup};
use crate::error::Result;
use crate::expert::{ExpertShape, ExpertTypes, ExpertWeights, ProjectionBytes, forward_each};
use crate::store::ExpertStore;

/// [`ExpertSlots`] for computing on the CPU; each slot owns one storage a projection, and a load is one copy into each, or where
/// the store can do that, one read from disk.
#[derive(Debug)]
pub struct CpuSlots {
    slots: Vec<RwLock<ExpertWeights>>,
}

impl CpuSlots {
    /// Allocates `capacity` slots and touches their memory: the bytes of the experts, and up to 12 KiB for each quantized
    /// projection.
    ///
    /// # Errors
    /// [`OffloadError::Size`](crate::OffloadError::Size) for a shape that no model has;
    /// [`OffloadError::Blocks`](crate::OffloadError::Blocks) for rows that are no multiple of a quantized block;
    /// [`OffloadError::HostMemory`](crate::OffloadError::HostMemory). Where the system promises more memory than it has, it
    /// may end the process instead.
    pub fn new(capacity: usize, shape: ExpertShape, types: impl Into<ExpertTypes>) -> Result<CpuSlots> {
        let types = types.into();
        shape.check()?;
        shape.check_blocks(types)?;
        let slots = ExpertWeights::zeros(capacity, shape, types)?;
        Ok(CpuSlots { slots: slots.into_iter().map(RwLock::new).collect() })
    }

    fn write(&self, slot: SlotId) -> RwLockWriteGuard<'_, ExpertWeights> {
        self.slots[slot.index()].write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExpertSlots for CpuSlots {
    fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn load(&self, slot: SlotId, expert: ProjectionBytes<'_>) -> Result<()> {
        self.write(slot).overwrite(expert)
    }

    fn load_from(&self, slot: SlotId, store: &dyn ExpertStore, layer: LayerId, expert: ExpertId) -> Result<()> {
        store.load_into(layer, expert, &mut self.write(slot)).map(|_| ())
    }

    fn forward(&self, hidden: &Tensor, groups: &[SlotGroup<'_>]) -> Result<Vec<Tensor>> {
        let read = |slot: SlotId| self.slots[slot.index()].read().unwrap_or_else(PoisonError::into_inner);
        let groups: Vec<_> = groups.iter().map(|group| (read(group.slot), group.rows)).collect();
        forward_each(hidden, &groups)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::QTensor;
    use candle_core::{DType, Device};

    use super::*;
    use crate::expert::gather;
    use crate::weights::{BlockMatrix, Projection, WeightType};

    const SHAPE: ExpertShape = ExpertShape { layers: 1, experts: 3, hidden: 512, intermediate: 256 };

    /// An expert of numbers in -1..1 that look random.
    fn expert(seed: usize, weight_type: WeightType) -> ExpertWeights {
        let [gate, up, down] = SHAPE.projections().map(|dims| {
            let values = (0..dims.0 * dims.1).map(|i| ((seed * 7919 + i * 104_729) as f32 * 12.9898).sin()).collect();
            let tensor = Tensor::from_vec(values, dims, &Device::Cpu).unwrap();
            match (weight_type.ggml(), weight_type.dense()) {
                (Some(ggml), _) => {
                    let blocks = QTensor::quantize(&tensor, ggml).unwrap();
                    Projection::Blocks(BlockMatrix::new(weight_type, dims, &blocks.data().unwrap()).unwrap())
                }
                (None, dense) => Projection::Dense(tensor.to_dtype(dense.unwrap()).unwrap()),
            }
        });
        ExpertWeights::from_projections([gate, up, down]).unwrap()
    }

    #[test]
    fn a_slot_computes_what_the_expert_computes_in_every_type() {
        for weight_type in WeightType::ALL {
            let slots = CpuSlots::new(2, SHAPE, weight_type).unwrap();
            let hidden = (0..4 * 512).map(|i| (i as f32 * 0.37).cos()).collect();
            let hidden = Tensor::from_vec(hidden, (4, 512), &Device::Cpu).unwrap();
            let hidden = hidden.to_dtype(weight_type.activations()).unwrap();
            let experts = [1, 2, 3].map(|seed| expert(seed, weight_type));
            // Slot 1 is overwritten: what was there leaves no trace.
            for (slot, expert) in [(1, 0), (0, 1), (1, 2)] {
                experts[expert].with_bytes(&mut |bytes| slots.load(SlotId(slot), bytes)).unwrap();
            }
            let groups =
                [(0, &[0u32, 2][..]), (1, &[1, 2, 3])].map(|(slot, rows)| SlotGroup { slot: SlotId(slot), rows });
            let outputs = slots.forward(&hidden, &groups).unwrap();
            for ((output, group), expert) in outputs.iter().zip(groups).zip(&experts[1..]) {
                let expected = expert.forward(&gather(&hidden, group.rows).unwrap()).unwrap();
                let values = |tensor: &Tensor| {
                    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
                };
                assert_eq!(values(output), values(&expected), "{weight_type}");
            }
        }
    }

    #[test]
    fn misfits_are_told() {
        let slots = CpuSlots::new(1, SHAPE, WeightType::Q4K).unwrap();
        let error = slots.load(SlotId(0), ProjectionBytes { gate: &[0; 5], up: &[], down: &[] }).unwrap_err();
        assert_eq!(error.to_string(), "a projection of 5 bytes does not fit a slot's of 73728");
        let narrow = ExpertShape { hidden: 288, ..SHAPE };
        let error = CpuSlots::new(1, narrow, WeightType::Q4K).unwrap_err();
        assert_eq!(error.to_string(), "rows of 288 weights are no multiple of the 256 of a block of q4_k");
    }
}
