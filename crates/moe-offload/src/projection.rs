//! One matrix of an expert.

use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{CpuStorage, Device, Storage, Tensor};

use crate::{OffloadError, Result, WeightType};

/// A matrix `[out, in]` that tokens are multiplied with.
#[derive(Clone, Debug)]
pub enum Projection {
    /// Floating point numbers.
    Dense(Tensor),
    /// Quantized blocks.
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
            Projection::Quantized(tensor) => tensor.dtype().try_into(),
        }
    }

    /// Multiplies tokens `[tokens, in]`: `[tokens, out]`, in the type of the tokens.
    ///
    /// # Errors
    /// A tensor operation that failed.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Projection::Dense(tensor) => tokens.matmul(&tensor.t()?)?,
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
            Projection::Quantized(tensor) if tensor.device().same_device(device) => self.clone(),
            Projection::Quantized(tensor) => {
                let storage = candle_core::quantized::QStorage::from_data(tensor.data()?, device, tensor.dtype())?;
                Projection::Quantized(Arc::new(QTensor::new(storage, tensor.shape().clone())?))
            }
        })
    }

    /// Lends the bytes of weights in host memory, row by row.
    ///
    /// # Errors
    /// [`OffloadError::NotOnHost`]; what `read` says.
    pub fn with_bytes<T>(&self, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let tensor = match self {
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
}
