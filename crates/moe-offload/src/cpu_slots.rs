//! Slots in host memory.

use std::sync::{PoisonError, RwLock};

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Tensor};
use expert_cache::SlotId;

use crate::dispatch::gather;
use crate::slots::SlotGroup;
use crate::{ExpertShape, ExpertSlots, ExpertWeights, OffloadError, Projection, Result, WeightType};

/// [`ExpertSlots`] for computing on the CPU; each slot owns one storage a projection.
#[derive(Debug)]
pub struct CpuSlots {
    shape: ExpertShape,
    weight_type: WeightType,
    slots: Vec<RwLock<ExpertWeights>>,
}

impl CpuSlots {
    /// Allocates `capacity` slots.
    ///
    /// # Errors
    /// [`OffloadError::Blocks`] for rows that are no multiple of a quantized block.
    pub fn new(capacity: usize, shape: ExpertShape, weight_type: WeightType) -> Result<CpuSlots> {
        shape.check_blocks(weight_type)?;
        let slots = (0..capacity).map(|_| Ok(RwLock::new(zeros(shape, weight_type)?))).collect::<Result<_>>()?;
        Ok(CpuSlots { shape, weight_type, slots })
    }
}

/// An expert of zeros in host memory.
pub(crate) fn zeros(shape: ExpertShape, weight_type: WeightType) -> Result<ExpertWeights> {
    let [gate, up, down] = shape.projections().map(|dims| -> Result<Projection> {
        Ok(match (weight_type.ggml(), weight_type.dense()) {
            (Some(ggml), _) => {
                let storage = QStorage::Cpu(ggml.cpu_zeros(dims.0 * dims.1));
                Projection::Quantized(QTensor::new(storage, dims)?.into())
            }
            (None, dense) => Projection::Dense(Tensor::zeros(dims, dense.unwrap_or(DType::F32), &Device::Cpu)?),
        })
    });
    ExpertWeights::from_projections([gate?, up?, down?])
}

impl ExpertSlots for CpuSlots {
    fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn load(&self, slot: SlotId, expert: [&[u8]; 3]) -> Result<()> {
        let mut held = self.slots[slot.index()].write().unwrap_or_else(PoisonError::into_inner);
        let expected = self.shape.projections().map(|(rows, columns)| self.weight_type.bytes(rows, columns));
        let [gate, up, down] = [0, 1, 2].map(|which| -> Result<Projection> {
            if expert[which].len() != expected[which] {
                return Err(OffloadError::SlotBytes { found: expert[which].len(), expected: expected[which] });
            }
            let projection = &held.projections()[which];
            Ok(match projection {
                Projection::Dense(tensor) => {
                    tensor.inplace_op1(&Overwrite(expert[which]))?;
                    projection.clone()
                }
                Projection::Quantized(tensor) => {
                    let storage = QStorage::from_data(expert[which].into(), &Device::Cpu, tensor.dtype())?;
                    Projection::Quantized(QTensor::new(storage, tensor.shape().clone())?.into())
                }
            })
        });
        *held = ExpertWeights::from_projections([gate?, up?, down?])?;
        Ok(())
    }

    fn forward(&self, hidden: &Tensor, groups: &[SlotGroup<'_>]) -> Result<Vec<Tensor>> {
        let outputs = groups.iter().map(|group| {
            let expert = self.slots[group.slot.index()].read().unwrap_or_else(PoisonError::into_inner);
            expert.forward(&gather(hidden, group.rows)?)
        });
        outputs.collect()
    }
}

/// Overwrites a tensor with bytes of the same length.
struct Overwrite<'a>(&'a [u8]);

impl InplaceOp1 for Overwrite<'_> {
    fn name(&self) -> &'static str {
        "overwrite"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        match storage {
            CpuStorage::F32(values) => bytemuck::cast_slice_mut(values).copy_from_slice(self.0),
            CpuStorage::F16(values) => bytemuck::cast_slice_mut(values).copy_from_slice(self.0),
            CpuStorage::BF16(values) => bytemuck::cast_slice_mut(values).copy_from_slice(self.0),
            _ => candle_core::bail!("slots hold f32, f16 or bf16"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: ExpertShape = ExpertShape { layers: 1, experts: 3, hidden: 512, intermediate: 256 };

    /// An expert of numbers in -1..1 that look random.
    fn expert(seed: usize, weight_type: WeightType) -> ExpertWeights {
        let [gate, up, down] = SHAPE.projections().map(|dims| {
            let values = (0..dims.0 * dims.1).map(|i| ((seed * 7919 + i * 104_729) as f32 * 12.9898).sin()).collect();
            let tensor = Tensor::from_vec(values, dims, &Device::Cpu).unwrap();
            match (weight_type.ggml(), weight_type.dense()) {
                (Some(ggml), _) => Projection::Quantized(QTensor::quantize(&tensor, ggml).unwrap().into()),
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
        let error = slots.load(SlotId(0), [&[0; 5], &[], &[]]).unwrap_err();
        assert_eq!(error.to_string(), "a projection of 5 bytes does not fit a slot's of 73728");
        let narrow = ExpertShape { hidden: 288, ..SHAPE };
        let error = CpuSlots::new(1, narrow, WeightType::Q4K).unwrap_err();
        assert_eq!(error.to_string(), "rows of 288 weights are no multiple of the 256 of a block of q4_k");
    }
}
