//! Device memory of slots, and the kernels that read it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::quantized::cuda::QCudaStorage;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Shape, Storage, Tensor};
use candle_nn::moe::{moe_gemm, moe_gemm_gguf};
use candle_nn::ops::silu;

use super::cuda_driver::Cuda;
use super::driver::DeviceAddress;
use crate::error::{OffloadError, Result};
use crate::expert::{ExpertShape, ExpertWeights, gather};
use crate::weights::{Projection, WeightType};

/// Slots of a stack, at most: the fused kernels sum the tokens of all slots in one block of threads.
pub(super) const STACK_SLOTS: usize = 1024;

/// The gate, up and down projections of some slots, each one tensor `[slots, out, in]`.
#[derive(Debug)]
pub(super) struct Stack {
    shape: ExpertShape,
    types: [WeightType; 3],
    projections: [Stacked; 3],
    /// Held while the single experts of quantized stacks are written and read.
    singles: Mutex<()>,
}

/// One projection of all slots, and where it starts.
enum Stacked {
    Dense(Tensor, DeviceAddress),
    Quantized(Box<QTensor>, DeviceAddress, Single),
}

/// One expert's quantized projection, for the kernels that know no stacks.
struct Single {
    tensor: Arc<QTensor>,
    address: DeviceAddress,
}

impl Stack {
    /// Allocates slots.
    pub(super) fn new(slots: usize, shape: ExpertShape, types: [WeightType; 3], device: &Device) -> Result<Stack> {
        let dims = shape.projections();
        let [gate, up, down] = [0, 1, 2].map(|which| Stacked::new(slots, dims[which], types[which], device));
        Ok(Stack { shape, types, projections: [gate?, up?, down?], singles: Mutex::default() })
    }

    /// Where the projections of a slot are.
    pub(super) fn addresses(&self, slot: usize) -> [DeviceAddress; 3] {
        let bytes = self.projection_bytes();
        [0, 1, 2].map(|which| self.projections[which].address().plus(slot * bytes[which]))
    }

    /// Bytes of the projections of a slot.
    pub(super) fn projection_bytes(&self) -> [usize; 3] {
        let dims = self.shape.projections();
        [0, 1, 2].map(|which| self.types[which].bytes(dims[which].0, dims[which].1))
    }

    /// Sends groups of tokens through the experts in slots of this stack, all of them at once.
    ///
    /// Groups are slots of this stack, ascending, and rows of `hidden`; outputs are in their order.
    pub(super) fn forward_fused(&self, hidden: &Tensor, groups: &[(usize, &[u32])]) -> Result<Vec<Tensor>> {
        let device = hidden.device();
        let rows: Vec<u32> = groups.iter().flat_map(|(_, rows)| rows.iter()).copied().collect();
        let slot_number = |slot: usize| u32::try_from(slot).expect("a stack has few slots");
        let slots = groups.iter().flat_map(|&(slot, rows)| std::iter::repeat_n(slot_number(slot), rows.len()));
        let slots: Vec<u32> = slots.collect();
        let count = u32::try_from(rows.len()).expect("rows are u32");
        // The kernels read row `order[i]` and send it through slot `slots[i]`; both ascend.
        let order = Tensor::arange(0, count, device)?;
        let slots = Tensor::from_vec(slots, rows.len(), device)?;
        let multiply = |which: usize, tokens: &Tensor| match &self.projections[which] {
            Stacked::Dense(stack, _) => moe_gemm(tokens, stack, &None, &order, &slots, 1, false),
            Stacked::Quantized(stack, ..) => moe_gemm_gguf(tokens, stack, &None, &order, &slots, 1, false, DType::F32),
        };
        let tokens = gather(hidden, &rows)?;
        let inner = (silu(&multiply(0, &tokens)?)? * multiply(1, &tokens)?)?;
        let outputs = multiply(2, &inner)?;
        let mut start = 0;
        let split = groups.iter().map(|(_, rows)| {
            let output = outputs.narrow(0, start, rows.len())?;
            start += rows.len();
            Ok(output)
        });
        split.collect()
    }

    /// Sends a group of tokens through the expert in a slot of this stack.
    pub(super) fn forward_one(&self, driver: &Cuda, hidden: &Tensor, slot: usize, rows: &[u32]) -> Result<Tensor> {
        let tokens = gather(hidden, rows)?;
        // The copies and the compute follow each other in the stream, and no other thread's copies come between.
        let _single = self.singles.lock().unwrap_or_else(PoisonError::into_inner);
        let (addresses, bytes) = (self.addresses(slot), self.projection_bytes());
        let projection = |which: usize| -> Result<Projection> {
            match &self.projections[which] {
                Stacked::Dense(stack, _) => Ok(Projection::Dense(stack.get(slot)?)),
                Stacked::Quantized(_, _, single) => {
                    // SAFETY: both hold a projection of this shape and type, and live as long as the stack, whose singles
                    // are used on the compute stream alone.
                    #[expect(unsafe_code, reason = "writes device memory")]
                    unsafe {
                        driver.copy_within(addresses[which], single.address, bytes[which])?;
                    }
                    Ok(Projection::Quantized(Arc::clone(&single.tensor)))
                }
            }
        };
        let [gate, up, down] = [0, 1, 2].map(projection);
        ExpertWeights::from_projections([gate?, up?, down?])?.forward(&tokens)
    }
}

impl Stacked {
    fn new(slots: usize, (rows, columns): (usize, usize), weights: WeightType, device: &Device) -> Result<Stacked> {
        match (weights.ggml(), weights.dense()) {
            (Some(ggml), _) => {
                let (stack, address) = quantized((slots, rows, columns), ggml, device)?;
                let (tensor, single) = quantized((rows, columns), ggml, device)?;
                Ok(Stacked::Quantized(Box::new(stack), address, Single { tensor: Arc::new(tensor), address: single }))
            }
            (None, dense) => {
                let stack = Tensor::zeros((slots, rows, columns), dense.unwrap_or(DType::F32), device)?;
                let address = dense_address(&stack)?;
                Ok(Stacked::Dense(stack, address))
            }
        }
    }

    fn address(&self) -> DeviceAddress {
        match self {
            Stacked::Dense(_, address) | Stacked::Quantized(_, address, _) => *address,
        }
    }
}

/// A tensor of quantized zeros, and where it is.
fn quantized(dims: impl Into<Shape>, ggml: GgmlDType, device: &Device) -> Result<(QTensor, DeviceAddress)> {
    let dims = dims.into();
    let storage = QCudaStorage::zeros(device.as_cuda_device()?, dims.elem_count(), ggml)?;
    let address = DeviceAddress(storage.device_ptr()?.expose_provenance() as u64);
    Ok((QTensor::new(QStorage::Cuda(storage), dims)?, address))
}

fn dense_address(tensor: &Tensor) -> Result<DeviceAddress> {
    let (storage, _) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(OffloadError::Device { device: format!("{:?}", tensor.device().location()) });
    };
    let stream = storage.device.cuda_stream();
    // The address outlives the borrow of the storage, not the tensor, which the stack keeps.
    let address = match tensor.dtype() {
        DType::F16 => storage.as_cuda_slice::<half::f16>()?.device_ptr(&stream).0,
        DType::BF16 => storage.as_cuda_slice::<half::bf16>()?.device_ptr(&stream).0,
        _ => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
    };
    Ok(DeviceAddress(address))
}

impl fmt::Debug for Stacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stacked::Dense(stack, _) => stack.shape().fmt(f),
            Stacked::Quantized(stack, ..) => stack.shape().fmt(f),
        }
    }
}
