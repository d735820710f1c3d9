//! How the weight files hold the experts of a layer.

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Error, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::SimpleBackend;
use moe_offload::WeightLocation;
use moe_trace::{ExpertId, LayerId};

use crate::OlmoeConfig;
use crate::tensors::{GATE_UP, STACKED_DOWN};

/// A way to store the projections of a layer's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpertLayout {
    /// A tensor for each projection of each expert.
    Separate,
    /// Two tensors for all experts, as transformers 5 holds them in memory and saves them on request:
    /// `experts.gate_up_proj`, `[experts, 2 x intermediate, hidden]`, an expert's gate before its up projection, and
    /// `experts.down_proj`, `[experts, hidden, intermediate]`.
    Stacked,
}

impl ExpertLayout {
    /// The layout of files with tensors of some names.
    pub(crate) fn of<'a>(mut names: impl Iterator<Item = &'a str>) -> ExpertLayout {
        match names.any(|name| name.ends_with(GATE_UP)) {
            true => ExpertLayout::Stacked,
            false => ExpertLayout::Separate,
        }
    }

    /// Places of an expert's gate, up and down projection.
    pub(crate) fn locations(self, config: &OlmoeConfig, layer: LayerId, expert: ExpertId) -> [WeightLocation; 3] {
        match self {
            ExpertLayout::Separate => config.expert_names(layer, expert).map(WeightLocation::whole),
            ExpertLayout::Stacked => {
                let stack = |name| format!("{}{name}", config.mlp_name(layer));
                WeightLocation::fused(stack(GATE_UP), stack(STACKED_DOWN), expert, config.params().num_experts)
            }
        }
    }
}

/// A projection of one expert within a stacked tensor.
#[derive(Debug, PartialEq, Eq)]
struct StackedPart {
    tensor: String,
    part: usize,
    /// Projections of one expert in the tensor.
    per_expert: usize,
}

impl StackedPart {
    /// The part that has what a separate tensor of this name would have; none if the name is not of an expert.
    fn of(name: &str) -> Option<StackedPart> {
        let (mlp, projection) = name.rsplit_once(".experts.")?;
        let (expert, projection) = projection.split_once('.')?;
        let expert: usize = expert.parse().ok()?;
        let (stack, place, per_expert) = match projection {
            "gate_proj.weight" => (GATE_UP, 0, 2),
            "up_proj.weight" => (GATE_UP, 1, 2),
            "down_proj.weight" => (STACKED_DOWN, 0, 1),
            _ => return None,
        };
        Some(StackedPart { tensor: format!("{mlp}{stack}"), part: expert * per_expert + place, per_expert })
    }
}

/// Mapped weight files whose stacked experts are handed out one by one, by the names of separate ones.
pub(crate) struct StackedFiles(pub(crate) MmapedSafetensors);

impl StackedFiles {
    /// Copies the part of a tensor `[experts, per_expert x rows, columns]` to a device.
    fn load_part(&self, part: &StackedPart, name: &str, device: &Device) -> candle_core::Result<Tensor> {
        let stack = self.0.get(&part.tensor)?;
        let missing = || Error::CannotFindTensor { path: name.to_owned() }.bt();
        let &[experts, stacked_rows, columns] = stack.shape() else { return Err(missing()) };
        let (rows, bytes) = (stacked_rows / part.per_expert, stack.data());
        let len = bytes.len() / (experts * part.per_expert).max(1);
        let own = bytes.get(part.part * len..(part.part + 1) * len).ok_or_else(missing)?;
        Tensor::from_raw_buffer(own, stack.dtype().try_into()?, &[rows, columns], device)
    }
}

impl SimpleBackend for StackedFiles {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        match *tensor.shape() == shape {
            true => Ok(tensor),
            false => Err(Error::UnexpectedShape {
                msg: format!("shape mismatch for {name}"),
                expected: shape,
                got: tensor.shape().clone(),
            }),
        }
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let tensor = match StackedPart::of(name) {
            Some(part) => self.load_part(&part, name, device)?,
            None => self.0.load(name, device)?,
        };
        tensor.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.get(&StackedPart::of(name).map_or_else(|| name.to_owned(), |part| part.tensor)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_experts_are_places_in_stacks() {
        let part = |name: &str| StackedPart::of(&format!("model.layers.3.mlp.{name}"));
        let stacked = |tensor: &str, part, per_expert| {
            Some(StackedPart { tensor: format!("model.layers.3.mlp.experts.{tensor}"), part, per_expert })
        };
        assert_eq!(part("experts.7.gate_proj.weight"), stacked("gate_up_proj", 14, 2));
        assert_eq!(part("experts.7.up_proj.weight"), stacked("gate_up_proj", 15, 2));
        assert_eq!(part("experts.7.down_proj.weight"), stacked("down_proj", 7, 1));
        for name in ["gate.weight", "shared_experts.up_proj.weight", "experts.x.up_proj.weight", "experts.7.bias"] {
            assert_eq!(part(name), None, "{name}");
        }
    }
}
