//! Slots in the memory of a GPU.

use candle_core::{Device, Tensor};
use expert_cache::SlotId;

use super::cuda_driver::{Cuda, is_out_of_memory};
use super::fused::is_fused;
use super::last_reads::LastReads;
use super::loader::CudaLoader;
use super::stack::{STACK_SLOTS, Stack};
use crate::error::{OffloadError, Result};
use crate::expert::{ExpertShape, ExpertTypes, ProjectionBytes};
use crate::slots::{ExpertSlots, SlotGroup};
use crate::weights::WeightType;

/// [`ExpertSlots`] in the memory of an NVIDIA GPU, behind the feature `cuda`.
///
/// All slots share one tensor a projection, `[slots, out, in]`, so that a load is one copy a projection, and the fused
/// kernels of candle take slot numbers for experts. Copies run on streams of their own beside compute; a copy waits on
/// the device for the compute that reads its slot, and [`load`](ExpertSlots::load) returns when the copies are done.
///
/// Which kernel serves a group depends on the type and shape of the weights and on the tokens of the group, never on the
/// slot, the number of slots, or the other groups of the call. So a cache of any size computes what a cache of all experts
/// computes, bit by bit; [`ResidentExperts`](crate::ResidentExperts) uses other kernels, and may differ in the last bits.
#[derive(Debug)]
pub struct CudaSlots {
    shape: ExpertShape,
    types: [WeightType; 3],
    capacity: usize,
    /// Of [`STACK_SLOTS`] slots each, but for the last.
    stacks: Vec<Stack>,
    reads: LastReads<Cuda>,
    loader: CudaLoader,
}

impl CudaSlots {
    /// Allocates `capacity` slots on a GPU that was opened with [`cuda_device`](crate::cuda_device).
    ///
    /// # Errors
    /// [`OffloadError::DeviceMemory`] if they do not fit, [`OffloadError::Blocks`] for rows that are no multiple of a
    /// quantized block, [`OffloadError::StreamPerThread`], a driver that failed.
    pub fn new(
        capacity: usize,
        shape: ExpertShape,
        types: impl Into<ExpertTypes>,
        device: &Device,
    ) -> Result<CudaSlots> {
        let types = types.into();
        shape.check_blocks(types)?;
        let loader = CudaLoader::of(device)?;
        let bytes = (capacity as u64).saturating_mul(shape.expert_bytes(types) as u64);
        let no_room = |free_bytes| OffloadError::DeviceMemory { bytes, free_bytes };
        let free_bytes = loader.free_bytes()?;
        if bytes > free_bytes {
            return Err(no_room(free_bytes));
        }
        let starts = (0..capacity).step_by(STACK_SLOTS);
        let types = types.each();
        let stacks = starts.map(|start| Stack::new(STACK_SLOTS.min(capacity - start), shape, types, device));
        let stacks = stacks.collect::<Result<Vec<_>>>().map_err(|error| match error {
            OffloadError::Tensor(error) if is_out_of_memory(&error) => no_room(free_bytes),
            error => error,
        })?;
        // The tensors are allocated and zeroed in the order of the compute stream, and copied into from others.
        device.synchronize()?;
        let reads = LastReads::new(loader.copies().driver().clone(), capacity);
        Ok(CudaSlots { shape, types, capacity, stacks, reads, loader })
    }

    /// What loads into these slots.
    pub fn loader(&self) -> &CudaLoader {
        &self.loader
    }

    fn place(slot: SlotId) -> (usize, usize) {
        (slot.index() / STACK_SLOTS, slot.index() % STACK_SLOTS)
    }

    /// Queues the compute of all groups.
    fn queue(&self, hidden: &Tensor, groups: &[SlotGroup<'_>]) -> Result<Vec<Tensor>> {
        let mut outputs: Vec<Option<Tensor>> = groups.iter().map(|_| None).collect();
        let mut fused: Vec<usize> = Vec::with_capacity(groups.len());
        for (index, group) in groups.iter().enumerate() {
            if is_fused(self.types, self.shape, group.rows.len()) {
                fused.push(index);
            } else {
                let (stack, slot) = Self::place(group.slot);
                let driver = self.loader.copies().driver();
                outputs[index] = Some(self.stacks[stack].forward_one(driver, hidden, slot, group.rows)?);
            }
        }
        fused.sort_unstable_by_key(|&index| groups[index].slot.index());
        for together in
            fused.chunk_by(|&one, &other| Self::place(groups[one].slot).0 == Self::place(groups[other].slot).0)
        {
            let stack = Self::place(groups[together[0]].slot).0;
            let within = |&index: &usize| (Self::place(groups[index].slot).1, groups[index].rows);
            let calls: Vec<_> = together.iter().map(within).collect();
            for (&index, output) in together.iter().zip(self.stacks[stack].forward_fused(hidden, &calls)?) {
                outputs[index] = Some(output);
            }
        }
        Ok(outputs.into_iter().flatten().collect())
    }
}

impl ExpertSlots for CudaSlots {
    fn capacity(&self) -> usize {
        self.capacity
    }

    fn load(&self, slot: SlotId, expert: ProjectionBytes<'_>) -> Result<()> {
        let expert = expert.each();
        let (stack, within) = Self::place(slot);
        let stack = &self.stacks[stack];
        let expected = stack.projection_bytes();
        if let Some((bytes, expected)) = expert.iter().zip(expected).find(|(bytes, expected)| bytes.len() != *expected)
        {
            return Err(OffloadError::SlotBytes { found: bytes.len(), expected });
        }
        let [gate, up, down] = stack.addresses(within);
        let projections = [(expert[0], gate), (expert[1], up), (expert[2], down)];
        // SAFETY: the addresses are those of the slot's projections, whose lengths are checked above; the stack is borrowed.
        #[expect(unsafe_code, reason = "writes device memory")]
        unsafe {
            self.loader.copies().load(&self.reads, slot, projections)
        }
    }

    fn forward(&self, hidden: &Tensor, groups: &[SlotGroup<'_>]) -> Result<Vec<Tensor>> {
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        self.reads.compute(groups.iter().map(|group| group.slot), || self.queue(hidden, groups))
    }
}
