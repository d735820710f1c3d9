//! The driver of NVIDIA GPUs.

use std::sync::Arc;

use candle_core::Error;
use candle_core::cuda_backend::CudaError;
use candle_core::cuda_backend::cudarc::driver::sys::{self, CUresult};
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DriverError, PinnedHostSlice, result,
};

use super::driver::{DeviceAddress, Driver};
use crate::error::{OffloadError, Result};

/// A GPU whose tensors are all computed on one stream.
#[derive(Debug)]
pub(super) struct Cuda {
    context: Arc<CudaContext>,
    compute: Arc<CudaStream>,
}

/// Page-locked memory of somebody else.
#[derive(Debug)]
pub(super) struct Registration {
    context: Arc<CudaContext>,
    address: usize,
}

impl Cuda {
    /// The GPU of a stream.
    ///
    /// # Errors
    /// [`OffloadError::StreamPerThread`].
    pub(super) fn new(compute: Arc<CudaStream>) -> Result<Cuda> {
        // The driver's handle of "the stream of whatever thread asks".
        if compute.cu_stream().addr() == 2 {
            return Err(OffloadError::StreamPerThread);
        }
        Ok(Cuda { context: Arc::clone(compute.context()), compute })
    }

    /// Bytes that are free on the device.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        let (free, _) = self.context.mem_get_info().map_err(fault("asking for free memory"))?;
        Ok(free as u64)
    }

    /// Queues a copy within device memory behind all compute.
    ///
    /// # Safety
    /// Both sides are of that length, and alive; the memory at `to` is used on the compute stream alone.
    #[expect(unsafe_code, reason = "writes device memory")]
    pub(super) unsafe fn copy_within(&self, from: DeviceAddress, to: DeviceAddress, bytes: usize) -> Result<()> {
        self.context.bind_to_thread().map_err(fault("binding the context"))?;
        // SAFETY: as the caller promises; memory is freed in the order of the same stream.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.compute.cu_stream()) }
            .map_err(fault("copying within device memory"))
    }
}

impl Driver for Cuda {
    type Lane = Arc<CudaStream>;
    type Event = CudaEvent;
    type Staging = PinnedHostSlice<u8>;
    type Locked = Registration;

    fn lane(&self) -> Result<Arc<CudaStream>> {
        self.context.new_stream().map_err(fault("opening a stream"))
    }

    fn staging(&self, bytes: usize) -> Result<PinnedHostSlice<u8>> {
        // SAFETY: the bytes are written before they are read; the host never reads them.
        #[expect(unsafe_code, reason = "the memory is not initialised")]
        unsafe { self.context.alloc_pinned_with_flags(bytes, 0) }.map_err(fault("allocating page-locked memory"))
    }

    #[expect(unsafe_code, reason = "as declared")]
    unsafe fn lock(&self, address: usize, bytes: usize) -> Result<Registration> {
        self.context.bind_to_thread().map_err(fault("binding the context"))?;
        let pages = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: the caller keeps the pages mapped; the driver reads them only in copies that are asked for.
        unsafe { sys::cuMemHostRegister_v2(pages, bytes, 0) }.result().map_err(fault("page-locking host memory"))?;
        Ok(Registration { context: Arc::clone(&self.context), address })
    }

    fn fill(&self, staging: &mut PinnedHostSlice<u8>, bytes: &[u8]) -> Result<()> {
        assert!(bytes.len() <= staging.len(), "{} bytes for a buffer of {}", bytes.len(), staging.len());
        let to = staging.as_mut_ptr().map_err(fault("reaching page-locked memory"))?;
        // SAFETY: the buffer is no shorter, ours alone, and no borrow of it is anybody else's memory.
        #[expect(unsafe_code, reason = "the memory is not initialised")]
        unsafe {
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "as declared")]
    unsafe fn copy_staged(
        &self,
        lane: &Arc<CudaStream>,
        from: &PinnedHostSlice<u8>,
        bytes: usize,
        to: DeviceAddress,
    ) -> Result<()> {
        assert!(bytes <= from.len(), "{bytes} bytes of a buffer of {}", from.len());
        let start = from.as_ptr().map_err(fault("reaching page-locked memory"))?;
        // SAFETY: the first `bytes` bytes were filled, and stay as they are until the copy is done.
        unsafe { self.copy(lane, std::slice::from_raw_parts(start, bytes), to) }
    }

    #[expect(unsafe_code, reason = "as declared")]
    unsafe fn copy(&self, lane: &Arc<CudaStream>, from: &[u8], to: DeviceAddress) -> Result<()> {
        self.context.bind_to_thread().map_err(fault("binding the context"))?;
        // SAFETY: the caller keeps both sides alive until the copy is done.
        unsafe { result::memcpy_htod_async(to.0, from, lane.cu_stream()) }.map_err(fault("copying to the device"))
    }

    fn record(&self, lane: &Arc<CudaStream>) -> Result<CudaEvent> {
        lane.record_event(None).map_err(fault("recording an event"))
    }

    fn record_compute(&self) -> Result<CudaEvent> {
        self.record(&self.compute)
    }

    fn wait(&self, lane: &Arc<CudaStream>, event: &CudaEvent) -> Result<()> {
        lane.wait(event).map_err(fault("waiting for an event"))
    }

    fn synchronize(&self, event: &CudaEvent) -> Result<()> {
        event.synchronize().map_err(fault("waiting for a copy"))
    }

    fn drain(&self, lane: &Arc<CudaStream>) -> Result<()> {
        lane.synchronize().map_err(fault("waiting for copies"))
    }

    fn drain_all(&self) -> Result<()> {
        self.context.synchronize().map_err(fault("waiting for the device"))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        let pages = std::ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: registered in `lock`, once, and still mapped.
        #[expect(unsafe_code, reason = "undoes the registration")]
        self.context.record_err(unsafe { sys::cuMemHostUnregister(pages) }.result());
    }
}

/// The error of an operation that the driver refused.
pub(super) fn fault(operation: &'static str) -> impl FnOnce(DriverError) -> OffloadError {
    move |error| {
        let name = error.error_name().map_or_else(|_| "unnamed".to_owned(), |name| name.to_string_lossy().into_owned());
        OffloadError::Driver { operation, code: error.0 as u32, name }
    }
}

/// Whether an error of a tensor operation says that the device is full.
pub(super) fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::WithBacktrace { inner, .. } => is_out_of_memory(inner),
        Error::Cuda(error) => {
            matches!(error.downcast_ref(), Some(CudaError::Cuda(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY))))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_device_is_told_from_a_broken_one() {
        let error = |code| Error::from(CudaError::Cuda(DriverError(code)));
        assert!(is_out_of_memory(&error(CUresult::CUDA_ERROR_OUT_OF_MEMORY)));
        assert!(!is_out_of_memory(&error(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)));
        assert!(!is_out_of_memory(&Error::Msg("out of memory".to_owned())));
    }
}
