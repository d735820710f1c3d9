//! How large the parts of a model are.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use expert_cache::ModelSize;
use serde::Deserialize;

/// What the size of a model follows from, by the names of `config.json`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Shape {
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

/// Bits of a weight, scales included.
#[derive(Clone, Copy, Debug)]
struct Bits {
    experts: f64,
    dense: f64,
    head: f64,
}

/// The models known by name: their published configurations.
const PRESETS: [(&str, Shape, Bits); 2] = [
    // MXFP4 experts: 4 bits, and 8 bits of scale for each 32 weights; the rest in bf16.
    (
        "gpt-oss-20b",
        Shape {
            hidden_size: 2880,
            num_hidden_layers: 24,
            num_attention_heads: 64,
            num_key_value_heads: Some(8),
            head_dim: Some(64),
            vocab_size: 201_088,
            moe_intermediate_size: Some(2880),
            intermediate_size: None,
            num_experts: 32,
        },
        Bits { experts: 4.25, dense: 16.0, head: 16.0 },
    ),
    // Q4_K: 144 bytes for 256 weights; the head in Q6_K: 210 bytes for 256 weights.
    (
        "qwen3-30b-a3b",
        Shape {
            hidden_size: 2048,
            num_hidden_layers: 48,
            num_attention_heads: 32,
            num_key_value_heads: Some(4),
            head_dim: Some(128),
            vocab_size: 151_936,
            moe_intermediate_size: Some(768),
            intermediate_size: None,
            num_experts: 128,
        },
        Bits { experts: 4.5, dense: 4.5, head: 6.5625 },
    ),
];

/// Names of the models known by name.
pub(crate) fn presets() -> String {
    PRESETS.map(|(name, ..)| name).join(", ")
}

/// The size of a model given by name, by the folder of its checkpoint, or by a JSON file.
///
/// Bits of a weight are those of the model known by name, otherwise 16, unless they are given.
pub(crate) fn size(model: &str, expert_bits: Option<f64>, dense_bits: Option<f64>) -> Result<ModelSize> {
    let path = Path::new(model);
    if path.is_file() {
        ensure!(expert_bits.is_none() && dense_bits.is_none(), "{model} says the bytes itself, leave out --*-bits");
        let file = File::open(path).with_context(|| format!("cannot read {model}"))?;
        return serde_json::from_reader(file)
            .with_context(|| format!("{model} is not the size of a model; see --help"));
    }
    let (shape, bits) = if let Some((_, shape, bits)) = PRESETS.iter().find(|(name, ..)| *name == model) {
        (*shape, *bits)
    } else if path.is_dir() {
        let file = path.join("config.json");
        let shape = File::open(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let shape = serde_json::from_reader(shape)
            .with_context(|| format!("{} lacks what the sizes follow from; give a JSON file", file.display()))?;
        (shape, Bits { experts: 16.0, dense: 16.0, head: 16.0 })
    } else {
        bail!("--model is {model:?}; known are {}, a checkpoint's folder, or a JSON file", presets());
    };
    let dense = dense_bits.unwrap_or(bits.dense);
    let bits = Bits { experts: expert_bits.unwrap_or(bits.experts), dense, head: dense_bits.unwrap_or(bits.head) };
    shape.size(bits)
}

impl Shape {
    /// Three projections an expert; query, key, value and output projections and the router a layer; the head.
    fn size(&self, bits: Bits) -> Result<ModelSize> {
        for (field, value) in [("--expert-bits", bits.experts), ("--dense-bits", bits.dense)] {
            ensure!(value > 0.0 && value <= 64.0, "{field} is {value}, give 0 to 64");
        }
        let largest = [self.hidden_size, self.vocab_size, self.num_attention_heads, self.num_experts]
            .into_iter()
            .chain(
                [self.num_key_value_heads, self.head_dim, self.moe_intermediate_size, self.intermediate_size]
                    .into_iter()
                    .flatten(),
            )
            .max();
        ensure!(largest <= Some(1 << 20) && self.num_attention_heads > 0, "config.json has an impossible size");
        let intermediate = self.moe_intermediate_size.or(self.intermediate_size);
        let intermediate =
            intermediate.context("config.json has neither moe_intermediate_size nor intermediate_size")?;
        let hidden = self.hidden_size;
        let head_dim = self.head_dim.unwrap_or(hidden / self.num_attention_heads);
        let heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let (expert, dense) = (3 * hidden * intermediate, hidden * heads * head_dim + hidden * self.num_experts);
        let head = hidden * self.vocab_size;
        Ok(ModelSize {
            expert_bytes: vec![bytes(expert, bits.experts); self.num_hidden_layers],
            expert_weights: expert,
            dense_bytes: bytes(dense, bits.dense),
            dense_weights: dense,
            head_bytes: bytes(head, bits.head),
            head_weights: head,
        })
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and below 2^53")]
fn bytes(weights: u64, bits: f64) -> u64 {
    (weights as f64 * bits / 8.0).round() as u64
}

/// Bytes given as `4000MiB`, `12GB`, or a plain number.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "" | "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("{unit:?} is no unit; give B, kB, MB, GB, KiB, MiB or GiB")),
    };
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number * unit < 1e18 =>
        {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and below 10^18")]
            Ok((number * unit).round() as u64)
        }
        _ => Err("give a size such as 4000MiB or 12GB".to_owned()),
    }
}
