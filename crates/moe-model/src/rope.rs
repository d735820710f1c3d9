//! Rotary position embedding.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{DType, Device, Tensor};

use crate::kernels::Kernels;
use crate::{OlmoeConfig, Result};

/// Positions that the first table has room for.
const FIRST_POSITIONS: usize = 1024;

/// Cosines and sines of positions (Su et al. 2021, arXiv 2104.09864), in the half-split layout of Hugging Face.
///
/// The table holds the positions that were used so far: it doubles when a pass needs more, up to
/// `max_position_embeddings`, however large that is.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    /// f32 `[1, head_dim / 2]`.
    frequencies: Tensor,
    dtype: DType,
    max_positions: usize,
    table: Arc<RwLock<Option<Rotation>>>,
}

/// Cosines and sines of consecutive positions, `[positions, head_dim / 2]` each.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub(crate) fn new(config: &OlmoeConfig, dtype: DType, device: &Device) -> Result<Rope> {
        let head_dim = config.head_dim();
        // Single precision throughout, as the reference computes it.
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
        let frequencies: Vec<f32> = (0..head_dim)
            .step_by(2)
            .map(|i| 1.0 / (config.params().rope_theta as f32).powf(i as f32 / head_dim as f32))
            .collect();
        Ok(Rope {
            frequencies: Tensor::from_vec(frequencies, (1, head_dim / 2), device)?,
            dtype,
            max_positions: config.params().max_position_embeddings,
            table: Arc::default(),
        })
    }

    /// Returns the rotation of tokens at `positions`, which end at `max_position_embeddings` at the latest.
    pub(crate) fn at(&self, positions: Range<usize>) -> Result<Rotation> {
        let held = |table: &Option<Rotation>| table.as_ref().and_then(|table| table.within(&positions)).transpose();
        if let Some(rotation) = held(&self.table.read().unwrap_or_else(PoisonError::into_inner))? {
            return Ok(rotation);
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        // Another pass may have made the table longer meanwhile.
        if let Some(rotation) = held(&table)? {
            return Ok(rotation);
        }
        let room = positions.end.next_power_of_two().max(FIRST_POSITIONS).min(self.max_positions);
        let rotation = self.compute(room)?;
        let part = rotation.narrow(&positions)?;
        *table = Some(rotation);
        Ok(part)
    }

    fn compute(&self, positions: usize) -> Result<Rotation> {
        let end = u32::try_from(positions).expect("checked in OlmoeConfig::new");
        let position = Tensor::arange(0u32, end, self.frequencies.device())?;
        let angle = position.to_dtype(DType::F32)?.reshape((positions, 1))?.matmul(&self.frequencies)?;
        Ok(Rotation { cos: angle.cos()?.to_dtype(self.dtype)?, sin: angle.sin()?.to_dtype(self.dtype)? })
    }
}

impl Rotation {
    fn within(&self, positions: &Range<usize>) -> Option<Result<Rotation>> {
        (positions.end <= self.cos.dims()[0]).then(|| self.narrow(positions))
    }

    fn narrow(&self, positions: &Range<usize>) -> Result<Rotation> {
        let part = |table: &Tensor| table.narrow(0, positions.start, positions.len());
        Ok(Rotation { cos: part(&self.cos)?, sin: part(&self.sin)? })
    }

    /// Rotates `x`, contiguous `[batch, heads, length, head_dim]`, whose tokens stand at the positions in order.
    pub(crate) fn rotate(&self, x: &Tensor, kernels: Kernels) -> Result<Tensor> {
        kernels.rope(x, &self.cos, &self.sin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OlmoeParams;

    fn rope(max_position_embeddings: usize) -> Rope {
        let params = OlmoeParams { max_position_embeddings, ..OlmoeParams::default() };
        Rope::new(&OlmoeConfig::new(params).unwrap(), DType::F32, &Device::Cpu).unwrap()
    }

    fn room(rope: &Rope) -> usize {
        rope.table.read().unwrap().as_ref().map_or(0, |table| table.cos.dims()[0])
    }

    #[test]
    fn the_table_has_room_for_the_positions_that_were_used() {
        let rope = rope(1 << 24);
        assert_eq!(room(&rope), 0);
        for (positions, expected_room) in [(0..1, 1024), (1023..1024, 1024), (1024..1025, 2048), (0..7, 2048)] {
            rope.at(positions).unwrap();
            assert_eq!(room(&rope), expected_room);
        }
        // Clones share it.
        rope.clone().at(5000..5001).unwrap();
        assert_eq!(room(&rope), 8192);
        let rope = self::rope(1500);
        rope.at(1499..1500).unwrap();
        assert_eq!(room(&rope), 1500);
    }

    #[test]
    fn a_position_has_one_rotation_however_long_the_table_is() {
        let (short, long) = (rope(1 << 24), rope(1 << 24));
        long.at(0..5000).unwrap();
        let values = |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap();
        let (short, long) = (short.at(700..703).unwrap(), long.at(700..703).unwrap());
        assert_eq!(values(&short.cos), values(&long.cos));
        assert_eq!(values(&short.sin), values(&long.sin));
        // The third pair of a head of 128 turns by 10000^(-4/128) a token.
        let angle = 701.0 * 10000f64.powf(-4.0 / 128.0);
        assert!((f64::from(values(&short.cos)[1][2]) - angle.cos()).abs() < 1e-4);
    }
}
