//! Sizes of models.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use moe_offload::ExpertShape;
use serde::Deserialize;

/// Sizes of a model of which every layer has experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Width of the residual stream.
    pub hidden: u64,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: u64,
    /// Number of key and value heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Number of token ids.
    pub vocabulary: u64,
    /// Width inside an expert.
    pub intermediate: u64,
    /// Experts a layer.
    pub experts: u64,
}

/// The models known by name: their published configurations.
const PRESETS: [(&str, ModelShape); 2] = [
    (
        "gpt-oss-20b",
        ModelShape {
            hidden: 2880,
            layers: 24,
            heads: 64,
            kv_heads: 8,
            head_dim: 64,
            vocabulary: 201_088,
            intermediate: 2880,
            experts: 32,
        },
    ),
    (
        "qwen3-30b-a3b",
        ModelShape {
            hidden: 2048,
            layers: 48,
            heads: 32,
            kv_heads: 4,
            head_dim: 128,
            vocabulary: 151_936,
            intermediate: 768,
            experts: 128,
        },
    ),
];

/// What the sizes follow from, by the names of `config.json`.
#[derive(Deserialize)]
struct ConfigFile {
    hidden_size: u64,
    num_hidden_layers: usize,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: u64,
    /// Of an expert, where a model also has dense layers.
    moe_intermediate_size: Option<u64>,
    intermediate_size: Option<u64>,
    #[serde(alias = "num_local_experts")]
    num_experts: u64,
}

impl ModelShape {
    /// Largest of any size.
    const MAX: u64 = 1 << 20;

    /// Names of the models known by name.
    pub fn names() -> String {
        PRESETS.map(|(name, _)| name).join(", ")
    }

    /// The sizes of a model given by name or by the folder of its checkpoint.
    ///
    /// # Errors
    /// A name that is not known; a `config.json` that lacks a size or has one of 0 or above 2^20.
    pub fn find(model: &str) -> Result<ModelShape> {
        if let Some((_, shape)) = PRESETS.iter().find(|(name, _)| *name == model) {
            return Ok(*shape);
        }
        if !Path::new(model).is_dir() {
            bail!("{model:?} is no model known by name ({}) and no checkpoint's folder", ModelShape::names());
        }
        let path = Path::new(model).join("config.json");
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: ConfigFile = serde_json::from_reader(file)
            .with_context(|| format!("{} lacks what the sizes follow from", path.display()))?;
        config.shape().with_context(|| format!("{} is of no usable model", path.display()))
    }

    /// Sizes of the experts.
    ///
    /// # Errors
    /// A size that does not fit this machine.
    pub fn expert_shape(&self) -> Result<ExpertShape> {
        Ok(ExpertShape {
            layers: self.layers,
            experts: self.experts.try_into()?,
            hidden: self.hidden.try_into()?,
            intermediate: self.intermediate.try_into()?,
        })
    }

    /// Weights of one expert: three projections.
    pub fn expert_weights(&self) -> u64 {
        3 * self.hidden * self.intermediate
    }

    /// Weights of a layer without its experts: query, key, value and output projections, and the router.
    pub fn dense_weights(&self) -> u64 {
        self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim + self.hidden * self.experts
    }

    /// Weights of the output projection.
    pub fn head_weights(&self) -> u64 {
        self.hidden * self.vocabulary
    }
}

impl ConfigFile {
    fn shape(&self) -> Result<ModelShape> {
        let heads = self.num_attention_heads;
        let intermediate = self.moe_intermediate_size.or(self.intermediate_size);
        let shape = ModelShape {
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / heads.max(1)),
            vocabulary: self.vocab_size,
            intermediate: intermediate.context("it has neither moe_intermediate_size nor intermediate_size")?,
            experts: self.num_experts,
        };
        let sizes = [
            ("hidden_size", shape.hidden),
            ("num_hidden_layers", shape.layers as u64),
            ("num_attention_heads", shape.heads),
            ("num_key_value_heads", shape.kv_heads),
            ("head_dim", shape.head_dim),
            ("vocab_size", shape.vocabulary),
            ("intermediate_size", shape.intermediate),
            ("num_experts", shape.experts),
        ];
        for (field, value) in sizes {
            ensure!((1..=ModelShape::MAX).contains(&value), "{field} is {value}, allowed are 1 to {}", ModelShape::MAX);
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_models_have_their_published_numbers_of_weights() {
        let qwen = ModelShape::find("qwen3-30b-a3b").unwrap();
        assert_eq!(48 * 128 * qwen.expert_weights(), 28_991_029_248);
        assert!(ModelShape::find("gpt-4").unwrap_err().to_string().contains("qwen3-30b-a3b"));
        let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/default");
        assert_eq!(ModelShape::find(default).unwrap().expert_shape().unwrap().intermediate, 64);
    }
}
