//! One matrix of an expert.

use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor};

use half::{bf16, f16};

use super::block_matrix::BlockMatrix;
use super::matvec::Matvec;
use super::weight_type::WeightType;
use crate::error::{OffloadError, Result};
use crate::memory::HostArena;

/// A matrix `[out, in]` that tokens are multiplied with.
#[derive(Clone, Debug)]
pub enum Projection {
    /// Floating point numbers.
    Dense(Tensor),
    /// Quantized blocks in host memory.
    Blocks(BlockMatrix),
    /// Quantized blocks as candle holds them, on a device.
    Quantized(Arc<QTensor>),
}

impl Projection {
    /// Rows and columns.
    ///
    /// # Errors
    /// A tensor of another rank.
    pub fn dims(&self) -> Result<(usize, usize)> {
        Ok(match self {
            Projection::Dense(tensor) => tensor.dims2()?,
            Projection::Blocks(blocks) => blocks.dims(),
            Projection::Quantized(tensor) => tensor.shape().dims2()?,
        })
    }

    /// Type of the weights.
    ///
    /// # Errors
    /// [`OffloadError::WeightTypeName`] for a type that experts do not have.
    pub fn weight_type(&self) -> Result<WeightType> {
        match self {
            Projection::Dense(tensor) => tensor.dtype().try_into(),
            Projection::Blocks(blocks) => Ok(blocks.weight_type()),
            Projection::Quantized(tensor) => tensor.dtype().try_into(),
        }
    }

    /// The same weights, row after row.
    pub(crate) fn contiguous(self) -> Result<Projection> {
        Ok(match self {
            Projection::Dense(tensor) => Projection::Dense(tensor.contiguous()?),
            blocks => blocks,
        })
    }

    /// Multiplies tokens `[tokens, in]`: `[tokens, out]`, in the type of the tokens.
    ///
    /// Numbers are multiplied in a type that holds both tokens and weights, so that neither is rounded: tokens of f32 meet
    /// weights of bf16 as f32. Several tokens widen the matrix for the call, which takes 4 bytes of memory per weight; one token
    /// widens it piece by piece. Kernels of quantized blocks round tokens to eight bits, as llama.cpp's do.
    ///
    /// # Errors
    /// A tensor operation that failed.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Projection::Dense(tensor) => {
                let dtype = wide_enough(tokens.dtype(), tensor.dtype());
                let wide = tokens.to_dtype(dtype)?;
                let product = match Matvec::takes(&wide, tensor) {
                    true => wide.apply_op2(tensor, Matvec)?,
                    false => wide.matmul(&tensor.to_dtype(dtype)?.t()?)?,
                };
                product.to_dtype(tokens.dtype())?
            }
            Projection::Blocks(blocks) => blocks.forward(tokens)?,
            Projection::Quantized(tensor) => tokens.contiguous()?.apply_op1_no_bwd(tensor.as_ref())?,
        })
    }

    /// The same weights on `device`; nothing is copied if they are there.
    ///
    /// # Errors
    /// A device that has no room.
    pub fn to_device(&self, device: &Device) -> Result<Projection> {
        Ok(match self {
            Projection::Dense(tensor) => Projection::Dense(tensor.to_device(device)?),
            Projection::Blocks(_) if device.is_cpu() => self.clone(),
            Projection::Blocks(blocks) => {
                let ggml = blocks.weight_type().ggml().expect("blocks are quantized");
                let storage = QStorage::from_data(blocks.bytes().into(), device, ggml)?;
                Projection::Quantized(Arc::new(QTensor::new(storage, blocks.dims())?))
            }
            Projection::Quantized(tensor) if tensor.device().same_device(device) => self.clone(),
            Projection::Quantized(tensor) => {
                Projection::Blocks(BlockMatrix::new(self.weight_type()?, self.dims()?, &tensor.data()?)?)
                    .to_device(device)?
            }
        })
    }

    /// Lends the bytes of weights in host memory, row by row.
    ///
    /// # Errors
    /// [`OffloadError::NotOnHost`]; what `read` says.
    pub fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let tensor = match self {
            Projection::Blocks(blocks) => return read(blocks.bytes()),
            Projection::Quantized(tensor) => return read(&tensor.data()?),
            Projection::Dense(tensor) => tensor.contiguous()?,
        };
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { return Err(OffloadError::NotOnHost) };
        let (start, end) = layout.contiguous_offsets().expect("made contiguous above");
        match storage {
            CpuStorage::F32(values) => read(bytemuck::cast_slice(&values[start..end])),
            CpuStorage::F16(values) => read(bytemuck::cast_slice(&values[start..end])),
            CpuStorage::BF16(values) => read(bytemuck::cast_slice(&values[start..end])),
            _ => Err(OffloadError::WeightTypeName { name: tensor.dtype().as_str().to_owned() }),
        }
    }

    /// Zeros in host memory that is there to be [overwritten](Self::overwrite); numbers have memory of their own, as candle
    /// wants it.
    pub(crate) fn zeros_in(arena: &mut HostArena, weights: WeightType, dims: (usize, usize)) -> Result<Projection> {
        fn touched<T: Copy + Default>((rows, columns): (usize, usize)) -> Result<Vec<T>> {
            let (len, mut values) = (rows * columns, Vec::new());
            // Unlike `vec![zero; n]`, this touches the memory, and does not abort where there is none.
            values.try_reserve_exact(len).map_err(|error| OffloadError::HostMemory {
                bytes: len * size_of::<T>(),
                source: std::io::Error::new(std::io::ErrorKind::OutOfMemory, error),
            })?;
            values.resize(len, T::default());
            Ok(values)
        }
        Ok(match weights {
            WeightType::F32 => Projection::Dense(Tensor::from_vec(touched::<f32>(dims)?, dims, &Device::Cpu)?),
            WeightType::F16 => Projection::Dense(Tensor::from_vec(touched::<f16>(dims)?, dims, &Device::Cpu)?),
            WeightType::BF16 => Projection::Dense(Tensor::from_vec(touched::<bf16>(dims)?, dims, &Device::Cpu)?),
            blocks => Projection::Blocks(BlockMatrix::zeros_in(arena, blocks, dims)?),
        })
    }

    /// Bytes of an arena that zeros take.
    pub(crate) fn room(weights: WeightType, dims: (usize, usize)) -> usize {
        if weights.dense().is_some() { 0 } else { BlockMatrix::room(weights, dims) }
    }

    /// Copies weights, row by row, to host memory.
    ///
    /// # Errors
    /// [`OffloadError::Blocks`] for rows that are not made of whole blocks; [`OffloadError::SlotBytes`] for another number
    /// of bytes.
    pub fn from_bytes(weights: WeightType, dims: (usize, usize), bytes: &[u8]) -> Result<Projection> {
        let mut projection =
            Projection::zeros_in(&mut HostArena::new(Projection::room(weights, dims))?, weights, dims)?;
        projection.overwrite(bytes)?;
        Ok(projection)
    }

    /// Replaces weights in host memory by others of the same type, in place.
    pub(crate) fn overwrite(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Projection::Blocks(blocks) => blocks.overwrite(bytes),
            Projection::Quantized(_) => Err(OffloadError::NotOnHost),
            Projection::Dense(tensor) => {
                let expected = tensor.elem_count() * tensor.dtype().size_in_bytes();
                if bytes.len() != expected {
                    return Err(OffloadError::SlotBytes { found: bytes.len(), expected });
                }
                Ok(tensor.inplace_op1(&Overwrite(bytes))?)
            }
        }
    }
}

/// A type that holds the numbers of both.
fn wide_enough(tokens: DType, weights: DType) -> DType {
    match (tokens, weights) {
        (one, other) if one == other => one,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32,
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
            _ => candle_core::bail!("weights are f32, f16 or bf16"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens whose last bits a narrower type would lose meet weights of every type.
    #[test]
    fn neither_tokens_nor_weights_are_rounded() {
        let numbers = |count: usize, salt: usize| (0..count).map(|i| ((i * 31 + salt) as f32 * 0.37).sin()).collect();
        let (rows, columns) = (5, 64);
        let weights: Tensor = Tensor::from_vec(numbers(rows * columns, 3), (rows, columns), &Device::Cpu).unwrap();
        for (weights_type, tokens_type) in [
            (DType::BF16, DType::F32),
            (DType::F16, DType::F32),
            (DType::F32, DType::BF16),
            (DType::BF16, DType::F16),
            (DType::F32, DType::F64),
        ] {
            let weights = weights.to_dtype(weights_type).unwrap();
            let wide = weights.to_dtype(DType::F64).unwrap();
            for tokens in [1, 3] {
                let tokens = Tensor::from_vec(numbers(tokens * columns, 8), (tokens, columns), &Device::Cpu).unwrap();
                let tokens = tokens.to_dtype(tokens_type).unwrap();
                let product = Projection::Dense(weights.clone()).forward(&tokens).unwrap();
                assert_eq!(product.dtype(), tokens_type);
                let exact = tokens.to_dtype(DType::F64).unwrap().matmul(&wide.t().unwrap()).unwrap();
                let error = (product.to_dtype(DType::F64).unwrap() - &exact).unwrap().abs().unwrap();
                let error = error.max_all().unwrap().to_scalar::<f64>().unwrap();
                // Half a step of the tokens' type at sums of up to 16, and what sums in f32 may be off.
                let step = match tokens_type {
                    DType::BF16 => 16.0 / 256.0,
                    DType::F16 => 16.0 / 2048.0,
                    _ => 0.0,
                };
                assert!(error <= step + 1e-5, "{weights_type:?} x {tokens_type:?}: {error}");
            }
        }
    }
}
