//! How large the parts of a model are.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use expert_cache::ModelSize;
use moe_trace::ModelSizes;

/// Bits of a weight, scales included.
#[derive(Clone, Copy, Debug)]
struct Bits {
    experts: f64,
    dense: f64,
    head: f64,
}

/// The usual bits of the models known by name.
fn usual_bits(model: &str) -> Option<Bits> {
    match model {
        // MXFP4 experts: 4 bits, and 8 bits of scale for each 32 weights; the rest in bf16.
        "gpt-oss-20b" => Some(Bits { experts: 4.25, dense: 16.0, head: 16.0 }),
        // Q4_K: 144 bytes for 256 weights; the head in Q6_K: 210 bytes for 256 weights.
        "qwen3-30b-a3b" => Some(Bits { experts: 4.5, dense: 4.5, head: 6.5625 }),
        _ => None,
    }
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
    let sizes =
        ModelSizes::find(model).with_context(|| format!("--model {model}; a JSON file of sizes is fine too"))?;
    let bits = usual_bits(model).unwrap_or(Bits { experts: 16.0, dense: 16.0, head: 16.0 });
    let dense = dense_bits.unwrap_or(bits.dense);
    let bits = Bits { experts: expert_bits.unwrap_or(bits.experts), dense, head: dense_bits.unwrap_or(bits.head) };
    size_of(&sizes, bits)
}

/// The experts, the attention and the router per layer, and the head.
fn size_of(sizes: &ModelSizes, bits: Bits) -> Result<ModelSize> {
    for (field, value) in [("--expert-bits", bits.experts), ("--dense-bits", bits.dense)] {
        ensure!(value > 0.0 && value <= 64.0, "{field} is {value}, give 0 to 64");
    }
    let dense = sizes.attention_weights + sizes.router_weights();
    let (expert, head) = (sizes.expert_weights(), sizes.head_weights());
    Ok(ModelSize {
        expert_bytes: vec![bytes(expert, bits.experts); sizes.config.decoder.moe_layers.len()],
        expert_weights: expert,
        dense_bytes: bytes(dense, bits.dense),
        dense_weights: dense,
        head_bytes: bytes(head, bits.head),
        head_weights: head,
    })
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
