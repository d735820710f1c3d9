//! Slots of the devices that this build supports.

use candle_core::Device;

use super::cpu::CpuSlots;
use super::expert_slots::ExpertSlots;
use crate::error::{OffloadError, Result};
use crate::expert::{ExpertShape, ExpertTypes};
use crate::memory::free_host_bytes;

/// Returns the free bytes of a device; in host memory the bytes that the process may still take, whether the machine or
/// its control group is the tighter limit. The page cache counts as free.
///
/// # Errors
/// [`OffloadError::Device`] for a device that this build has no slots for.
pub fn free_bytes(device: &Device) -> Result<u64> {
    match device {
        Device::Cpu => free_host_bytes(),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => super::cuda::CudaLoader::of(device)?.free_bytes(),
        _ => Err(OffloadError::Device { device: format!("{:?}", device.location()) }),
    }
}

/// Allocates empty slots on a device.
pub(crate) fn new_slots(
    capacity: usize,
    shape: ExpertShape,
    types: ExpertTypes,
    device: &Device,
) -> Result<Box<dyn ExpertSlots>> {
    match device {
        Device::Cpu => Ok(Box::new(CpuSlots::new(capacity, shape, types)?)),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => Ok(Box::new(super::cuda::CudaSlots::new(capacity, shape, types, device)?)),
        _ => Err(OffloadError::Device { device: format!("{:?}", device.location()) }),
    }
}
