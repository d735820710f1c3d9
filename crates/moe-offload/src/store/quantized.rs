//! The experts of another store in other types.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use moe_trace::{ExpertId, LayerId};

use super::expert_store::ExpertStore;
use crate::error::{OffloadError, Result};
use crate::expert::{ExpertShape, ExpertTypes, ExpertWeights};
use crate::weights::{BlockMatrix, Projection, WeightType};

/// An [`ExpertStore`] that converts what it fetches from another one.
///
/// Converting takes its time with every fetch: it is there to be written to a file ([`write_gguf`](crate::write_gguf)) or
/// read into a [`HostStore`](crate::HostStore). Quantized weights are rounded to the nearest as candle does it, which is
/// llama.cpp's way without an importance matrix.
#[derive(Debug)]
pub struct QuantizedExperts {
    store: Arc<dyn ExpertStore>,
    types: Vec<ExpertTypes>,
}

impl QuantizedExperts {
    /// Converts the experts of `store` to `types`.
    ///
    /// # Errors
    /// [`OffloadError::Blocks`] if rows are not made of whole blocks.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use moe_offload::{ExpertShape, ExpertStore, QuantizedExperts, RandomExperts, WeightType};
    /// let shape = ExpertShape { layers: 1, experts: 2, hidden: 64, intermediate: 32 };
    /// let numbers = Arc::new(RandomExperts::new(shape, WeightType::F32, 7)?);
    /// let quantized = QuantizedExperts::new(numbers, WeightType::Q8_0)?;
    /// assert_eq!(quantized.bytes(), 2 * 3 * (64 * 32 / 32 * 34));
    /// # Ok::<(), moe_offload::OffloadError>(())
    /// ```
    pub fn new(store: Arc<dyn ExpertStore>, types: impl Into<ExpertTypes>) -> Result<QuantizedExperts> {
        let types = types.into();
        store.check()?;
        store.shape().check_blocks(types)?;
        let types = vec![types; store.shape().layers];
        Ok(QuantizedExperts { store, types })
    }
}

impl ExpertStore for QuantizedExperts {
    fn shape(&self) -> ExpertShape {
        self.store.shape()
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        &self.types
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        let weights = self.store.fetch_checked(layer, expert)?;
        let (projections, types) = (weights.projections(), self.types[layer.index()].each());
        let [gate, up, down] = [0, 1, 2].map(|which| convert(&projections[which], types[which]));
        ExpertWeights::from_projections([gate?, up?, down?])
    }

    fn read_ahead(&self, layer: LayerId, expert: ExpertId) -> Result<()> {
        self.store.read_ahead(layer, expert)
    }
}

/// The same matrix in another type.
fn convert(projection: &Projection, to: WeightType) -> Result<Projection> {
    if projection.weight_type()? == to {
        return Ok(projection.clone());
    }
    let numbers: Tensor = match projection {
        Projection::Dense(tensor) => tensor.clone(),
        Projection::Blocks(blocks) => blocks.dequantize()?,
        Projection::Quantized(_) => return Err(OffloadError::NotOnHost),
    };
    Ok(match to.dense() {
        Some(dtype) => Projection::Dense(numbers.to_dtype(dtype)?),
        None => Projection::Blocks(BlockMatrix::quantize(&numbers.to_dtype(DType::F32)?, to)?),
    })
}
