//! Copies without any cache around them.

use anyhow::Result;
use candle_core::Device;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream};

/// Memory that experts are copied to, and nothing else.
pub(crate) enum Plain {
    /// A projection of a slot each.
    Host(Vec<[Vec<u8>; 3]>),
    #[cfg(feature = "cuda")]
    Cuda(std::sync::Arc<CudaStream>, Vec<[CudaSlice<u8>; 3]>),
}

impl Plain {
    pub(crate) fn new(slots: usize, bytes: [usize; 3], device: &Device) -> Result<Plain> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = device {
            let slot = |_| -> Result<_> {
                let [gate, up, down] = bytes.map(|bytes| device.alloc_zeros::<u8>(bytes));
                Ok([gate?, up?, down?])
            };
            return Ok(Plain::Cuda(device.cuda_stream(), (0..slots).map(slot).collect::<Result<_>>()?));
        }
        anyhow::ensure!(device.is_cpu(), "copies to {:?} are not known", device.location());
        Ok(Plain::Host((0..slots).map(|_| bytes.map(|bytes| vec![1; bytes])).collect()))
    }

    /// Copies an expert; on a GPU the copy goes on after the return.
    pub(crate) fn copy(&mut self, slot: usize, expert: [&[u8]; 3]) -> Result<()> {
        match self {
            Plain::Host(slots) => {
                slots[slot].iter_mut().zip(expert).for_each(|(to, from)| to.copy_from_slice(from));
            }
            #[cfg(feature = "cuda")]
            Plain::Cuda(stream, slots) => {
                for (to, from) in slots[slot].iter_mut().zip(expert) {
                    stream.memcpy_htod(from, to)?;
                }
            }
        }
        Ok(())
    }

    /// Waits for all copies.
    pub(crate) fn finish(&self) -> Result<()> {
        match self {
            Plain::Host(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Plain::Cuda(stream, _) => Ok(stream.synchronize()?),
        }
    }
}
