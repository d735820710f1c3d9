//! What moves experts to a GPU.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::Device;
use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, result};
use moe_trace::{ExpertId, LayerId};

use super::copies::{CopiedBytes, Copies};
use super::cuda_driver::{Cuda, fault};
use super::pinning::Pinning;
use crate::error::{OffloadError, Result};
use crate::memory::os;
use crate::store::{ExpertStore, HostStore};
use crate::weights::Projection;

/// Bytes of a staging buffer; every load that runs at the same time has two.
const BUFFER_BYTES: usize = 4 << 20;

/// Loaders of the devices that slots use.
static LOADERS: Mutex<Vec<(DeviceId, Weak<Copies<Cuda>>)>> = Mutex::new(Vec::new());

/// Opens a GPU whose tensors are computed on one stream, whichever thread computes.
///
/// # Errors
/// [`OffloadError::NoGpu`] if there is no such GPU, or no driver for it.
pub fn cuda_device(ordinal: usize) -> Result<Device> {
    let no_gpu = |reason: String| OffloadError::NoGpu { ordinal, reason };
    result::init().map_err(|error| no_gpu(fault("starting the driver")(error).to_string()))?;
    let count = CudaContext::device_count().map_err(|error| no_gpu(fault("counting GPUs")(error).to_string()))?;
    if usize::try_from(count).is_ok_and(|count| ordinal >= count) {
        return Err(no_gpu(format!("the driver sees {count}")));
    }
    let device = Device::new_cuda_with_stream(ordinal).map_err(|error| no_gpu(error.to_string()))?;
    // SAFETY: every tensor of the device is allocated, used and freed on its one stream; copies into slots run on streams
    // of their own and are ordered by the events of the loader.
    #[expect(unsafe_code, reason = "two events a tensor and their calls are saved")]
    unsafe {
        device.as_cuda_device()?.disable_event_tracking();
    }
    Ok(device)
}

/// Copies experts to a GPU, beside its compute; the slots of a device share one.
#[derive(Clone, Debug)]
pub struct CudaLoader {
    copies: Arc<Copies<Cuda>>,
}

impl CudaLoader {
    /// The loader of a device: the one that its slots use, or a new one.
    ///
    /// # Errors
    /// A device that is no GPU; [`OffloadError::StreamPerThread`].
    pub fn of(device: &Device) -> Result<CudaLoader> {
        let device = device.as_cuda_device()?;
        let mut loaders = LOADERS.lock().unwrap_or_else(PoisonError::into_inner);
        loaders.retain(|(_, copies)| copies.strong_count() > 0);
        let known = loaders.iter().find(|(id, _)| *id == device.id()).and_then(|(_, copies)| copies.upgrade());
        let copies = match known {
            Some(copies) => copies,
            None => {
                let copies = Arc::new(Copies::new(Arc::new(Cuda::new(device.cuda_stream())?), BUFFER_BYTES));
                loaders.push((device.id(), Arc::downgrade(&copies)));
                copies
            }
        };
        Ok(CudaLoader { copies })
    }

    /// Page-locks the experts of a store where they lie, as far as the system and `limit_bytes` allow, and keeps the store
    /// as long as any slots or loader of the device live. What is refused is loaded through staging buffers, which is
    /// slower; the refusal is part of the report and a warning.
    ///
    /// # Errors
    /// An expert that the store does not give.
    pub fn pin(&self, store: &Arc<HostStore>, limit_bytes: u64) -> Result<Pinning> {
        let shape = store.shape();
        let mut ranges = Vec::with_capacity(3 * shape.layers * shape.experts);
        for layer in (0..).take(shape.layers).map(LayerId) {
            for expert in (0..).take(shape.experts).map(ExpertId) {
                for projection in store.fetch(layer, expert)?.projections() {
                    let lent_from_a_copy = match projection {
                        Projection::Dense(tensor) => !tensor.is_contiguous(),
                        Projection::Blocks(_) => false,
                        Projection::Quantized(tensor) => !tensor.device().is_cpu(),
                    };
                    if lent_from_a_copy {
                        continue;
                    }
                    projection.with_bytes(|bytes| {
                        let start = bytes.as_ptr().expose_provenance();
                        ranges.push(start..start + bytes.len());
                        Ok(())
                    })?;
                }
            }
        }
        let owner = Arc::clone(store);
        // SAFETY: the store holds the storages of its experts, which nothing replaces, and is held.
        #[expect(unsafe_code, reason = "the driver remembers addresses")]
        Ok(unsafe { self.copies.lock(ranges, owner, os::page_size(), limit_bytes) })
    }

    /// What is page-locked so far, and why not more.
    pub fn pinning(&self) -> Pinning {
        self.copies.pinning()
    }

    /// Bytes that were loaded so far.
    pub fn copied(&self) -> CopiedBytes {
        self.copies.copied()
    }

    /// Bytes that are free on the device.
    ///
    /// # Errors
    /// A driver that failed.
    pub fn free_bytes(&self) -> Result<u64> {
        self.copies.driver().free_bytes()
    }

    pub(super) fn copies(&self) -> &Arc<Copies<Cuda>> {
        &self.copies
    }
}
