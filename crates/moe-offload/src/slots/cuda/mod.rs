//! Slots in the memory of an NVIDIA GPU.
//!
//! What decides order (`last_reads`, `copies`, `pinning`) knows the GPU as a [`Driver`](driver::Driver), and is tested
//! with one made of threads; what remains behind the `cuda` feature is calls of the driver and of kernels.

mod copies;
mod driver;
mod fused;
mod last_reads;
mod pinning;

#[cfg(feature = "cuda")]
mod cuda_driver;
#[cfg(feature = "cuda")]
mod loader;
#[cfg(feature = "cuda")]
mod slots;
#[cfg(feature = "cuda")]
mod stack;

#[cfg(test)]
mod stub;
#[cfg(test)]
mod tests;

pub use copies::CopiedBytes;
#[cfg(feature = "cuda")]
pub use loader::{CudaLoader, cuda_device};
pub use pinning::Pinning;
#[cfg(feature = "cuda")]
pub use slots::CudaSlots;
