//! Slots: the part of the compute device's memory that caches experts.

mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod device;
mod expert_slots;

pub use cpu::CpuSlots;
#[cfg(any(test, feature = "cuda"))]
pub use cuda::{CopiedBytes, Pinning};
#[cfg(feature = "cuda")]
pub use cuda::{CudaLoader, CudaSlots, cuda_device};
pub use device::free_bytes;
pub use expert_slots::{ExpertSlots, SlotGroup};

pub(crate) use device::new_slots;
