//! Where checkpoints keep a projection.

use moe_trace::ExpertId;

/// A projection within a checkpoint: a whole tensor, or one of the equal parts of a tensor that stacks several.
///
/// A layout whose projections are not contiguous has no location: `[experts, hidden, 2 * intermediate]`, which gpt-oss and
/// Llama 4 use, is refused as [`Transposed`](crate::OffloadError::Transposed) wherever its shape tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightLocation {
    pub(super) tensor: String,
    pub(super) part: usize,
    pub(super) parts: usize,
}

impl WeightLocation {
    /// A tensor `[out, in]`.
    pub fn whole(tensor: impl Into<String>) -> WeightLocation {
        WeightLocation::part(tensor, 0, 1)
    }

    /// Part `part` of `parts` of a tensor whose first dimensions together are `parts * out`, and whose last one is `in`.
    ///
    /// ```
    /// use moe_offload::WeightLocation;
    /// // Granite: `input_linear` is [experts, 2 * intermediate, hidden], and expert 3's gate comes before its up.
    /// let experts = 32;
    /// let gate = WeightLocation::part("block_sparse_moe.input_linear.weight", 2 * 3, 2 * experts);
    /// let up = WeightLocation::part("block_sparse_moe.input_linear.weight", 2 * 3 + 1, 2 * experts);
    /// let down = WeightLocation::part("block_sparse_moe.output_linear.weight", 3, experts);
    /// # assert_ne!((&gate, &gate), (&up, &down));
    /// ```
    pub fn part(tensor: impl Into<String>, part: usize, parts: usize) -> WeightLocation {
        WeightLocation { tensor: tensor.into(), part, parts }
    }

    /// Locations of an expert's gate, up and down projection in two tensors that stack the experts of a layer: `gate_up`
    /// `[experts, 2 * intermediate, hidden]`, where an expert's gate comes before its up, and `down`
    /// `[experts, hidden, intermediate]`.
    ///
    /// ```
    /// use moe_offload::WeightLocation;
    /// use moe_trace::ExpertId;
    /// let [gate, up, down] = WeightLocation::fused("experts.gate_up_proj", "experts.down_proj", ExpertId(3), 32);
    /// assert_eq!(gate, WeightLocation::part("experts.gate_up_proj", 6, 64));
    /// assert_eq!(up, WeightLocation::part("experts.gate_up_proj", 7, 64));
    /// assert_eq!(down, WeightLocation::part("experts.down_proj", 3, 32));
    /// ```
    pub fn fused(
        gate_up: impl Into<String>,
        down: impl Into<String>,
        expert: ExpertId,
        experts: usize,
    ) -> [WeightLocation; 3] {
        let (gate_up, expert) = (gate_up.into(), expert.index());
        let half = |half| WeightLocation::part(gate_up.clone(), 2 * expert + half, 2 * experts);
        [half(0), half(1), WeightLocation::part(down, expert, experts)]
    }
}

impl From<String> for WeightLocation {
    fn from(tensor: String) -> WeightLocation {
        WeightLocation::whole(tensor)
    }
}

impl From<&str> for WeightLocation {
    fn from(tensor: &str) -> WeightLocation {
        WeightLocation::whole(tensor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};
    use moe_trace::LayerId;

    use super::*;
    use crate::error::Result;
    use crate::expert::ExpertShape;
    use crate::store::{ExpertStore, MappedStore};
    use crate::weights::Projection;

    /// Opens a file of two stacked tensors of counting numbers.
    fn open(shape: ExpertShape, gate_up: (usize, usize, usize), down: (usize, usize, usize)) -> Result<MappedStore> {
        let counting = |dims: (usize, usize, usize)| {
            let numbers = (0u16..).take(dims.0 * dims.1 * dims.2).map(f32::from).collect();
            Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap()
        };
        let tensors = HashMap::from([("gate_up_proj", counting(gate_up)), ("down_proj", counting(down))]);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("model.safetensors");
        candle_core::safetensors::save(&tensors, &file).unwrap();
        let locations = |_: LayerId, expert| WeightLocation::fused("gate_up_proj", "down_proj", expert, shape.experts);
        MappedStore::open(&[file], shape, DType::F32, locations)
    }

    #[test]
    fn fused_experts_are_read_gate_before_up() {
        let shape = ExpertShape { layers: 1, experts: 3, hidden: 4, intermediate: 2 };
        let store = open(shape, (3, 4, 4), (3, 4, 2)).unwrap();
        let weights = store.fetch(LayerId(0), ExpertId(2)).unwrap();
        let first = weights.projections().each_ref().map(|projection| match projection {
            Projection::Dense(tensor) => tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0],
            other => panic!("{other:?}"),
        });
        // Two experts of 16 numbers lie before its gate, a gate of 8 before its up; two experts of 8 before its down.
        assert_eq!(first, [32.0, 40.0, 16.0]);
    }

    #[test]
    fn transposed_experts_are_refused_whatever_their_sizes() {
        // Where a transposed `gate_up` looks right, `down` does not, and the other way round.
        for (hidden, intermediate, found) in [(6, 2, "[3, 6, 4]"), (4, 2, "[3, 2, 4]"), (4, 4, "[3, 4, 8]")] {
            let shape = ExpertShape { layers: 1, experts: 3, hidden, intermediate };
            let error = open(shape, (3, hidden, 2 * intermediate), (3, intermediate, hidden)).unwrap_err().to_string();
            assert!(error.contains(&format!("has shape {found}: its matrices are [in, out]")), "{error}");
        }
    }
}
