//! How large the parts of a model are.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use expert_cache::ModelSize;
use moe_trace::{Geometry, ModelSizes};
use serde::Deserialize;
use serde_json::{Map, Value};

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

/// What is known of the model that a trace is of.
pub(crate) struct Model {
    pub(crate) size: ModelSize,
    /// Experts of a layer, unless a file of sizes does not say.
    experts: Option<usize>,
    /// Experts of a token, unless a file of sizes does not say.
    top_k: Option<usize>,
}

/// A file of sizes, with or without the experts that a trace is checked against.
#[derive(Deserialize)]
struct SizesFile {
    experts: Option<usize>,
    top_k: Option<usize>,
}

impl Model {
    /// Finds a model given by name, by its `config.json` or the folder of that, or by a JSON file of sizes.
    ///
    /// Bits of a weight are those of the model known by name, otherwise 16, unless they are given.
    pub(crate) fn find(model: &str, expert_bits: Option<f64>, dense_bits: Option<f64>) -> Result<Model> {
        if let Some(sizes) = sizes_file(Path::new(model))? {
            ensure!(expert_bits.is_none() && dense_bits.is_none(), "{model} says the bytes itself, leave out --*-bits");
            return Model::of_sizes(sizes).with_context(|| format!("{model} is not the size of a model; see --help"));
        }
        let sizes =
            ModelSizes::find(model).with_context(|| format!("--model {model}; a JSON file of sizes is fine too"))?;
        let bits = usual_bits(model).unwrap_or(Bits { experts: 16.0, dense: 16.0, head: 16.0 });
        let dense = dense_bits.unwrap_or(bits.dense);
        let bits = Bits { experts: expert_bits.unwrap_or(bits.experts), dense, head: dense_bits.unwrap_or(bits.head) };
        let size = size_of(&sizes, bits)?;
        Ok(Model { size, experts: Some(sizes.config.experts), top_k: Some(sizes.config.top_k) })
    }

    fn of_sizes(mut sizes: Map<String, Value>) -> Result<Model> {
        let SizesFile { experts, top_k } = serde_json::from_value(Value::Object(sizes.clone()))?;
        sizes.retain(|key, _| key != "experts" && key != "top_k");
        Ok(Model { size: serde_json::from_value(Value::Object(sizes))?, experts, top_k })
    }

    /// Refuses a trace that is not of this model.
    pub(crate) fn check(&self, name: &str, geometry: &Geometry) -> Result<()> {
        for (what, of_model, of_trace) in [
            ("layers of experts", Some(self.size.expert_bytes.len()), geometry.layers()),
            ("experts per layer", self.experts, geometry.experts()),
            ("experts per token", self.top_k, geometry.top_k()),
        ] {
            if let Some(of_model) = of_model.filter(|&of_model| of_model != of_trace) {
                bail!(
                    "--model {name} has {of_model} {what}, the trace {of_trace}: choose the model that the trace is of"
                );
            }
        }
        Ok(())
    }
}

/// The fields of a file that says the bytes of experts; none of another file, and of what is not a file.
fn sizes_file(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.is_file() {
        return Ok(None);
    }
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let fields: Map<String, Value> = serde_json::from_reader(BufReader::new(file))
        .with_context(|| format!("{} is neither the size of a model nor its configuration", path.display()))?;
    Ok(fields.contains_key("expert_bytes").then_some(fields))
}

/// The experts of each layer; attention, router and shared experts of a layer with experts; what is computed once a token:
/// the layers without experts, and the head.
fn size_of(sizes: &ModelSizes, bits: Bits) -> Result<ModelSize> {
    let (expert, head) = (sizes.expert_weights(), sizes.head_weights());
    ensure!(
        bytes(expert, bits.experts) > 0,
        "--expert-bits is {}, an expert of {expert} weights would have no byte",
        bits.experts
    );
    let dense = sizes.attention_weights + sizes.router_weights() + sizes.shared_weights();
    let without_experts = sizes.dense_layers() as u64 * (sizes.attention_weights + sizes.dense_layer_weights());
    Ok(ModelSize {
        expert_bytes: vec![bytes(expert, bits.experts); sizes.config.decoder.moe_layers.len()],
        expert_weights: expert,
        dense_bytes: bytes(dense, bits.dense),
        dense_weights: dense,
        head_bytes: bytes(without_experts, bits.dense) + bytes(head, bits.head),
        head_weights: without_experts + head,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a file and finds the model that it says.
    fn model(text: &str, expert_bits: Option<f64>) -> Result<Model> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.json");
        std::fs::write(&path, text).unwrap();
        Model::find(&path.display().to_string(), expert_bits, None)
    }

    const SIZES: &str = r#""expert_bytes": [10, 20], "expert_weights": 5, "dense_bytes": 1, "dense_weights": 1,
        "head_bytes": 1, "head_weights": 1}"#;

    #[test]
    fn a_trace_of_another_model_is_refused() {
        let geometry = |layers, experts, top_k| Geometry::decoder(layers, experts, top_k).unwrap();
        let qwen = Model::find("qwen3-30b-a3b", None, None).unwrap();
        qwen.check("q", &geometry(48, 128, 8)).unwrap();
        let refusal = |model: &Model, layers, experts, top_k| {
            model.check("q", &geometry(layers, experts, top_k)).unwrap_err().to_string()
        };
        let advice = "choose the model that the trace is of";
        assert_eq!(refusal(&qwen, 24, 128, 8), format!("--model q has 48 layers of experts, the trace 24: {advice}"));
        assert_eq!(refusal(&qwen, 48, 64, 8), format!("--model q has 128 experts per layer, the trace 64: {advice}"));
        assert_eq!(refusal(&qwen, 48, 128, 4), format!("--model q has 8 experts per token, the trace 4: {advice}"));
        // A file of sizes need not say how many experts there are.
        let sizes = model(&format!("{{{SIZES}"), None).unwrap();
        sizes.check("q", &geometry(2, 64, 3)).unwrap();
        let sizes = model(&format!("{{\"experts\": 8, \"top_k\": 2, {SIZES}"), None).unwrap();
        sizes.check("q", &geometry(2, 8, 2)).unwrap();
        assert_eq!(refusal(&sizes, 2, 8, 3), format!("--model q has 2 experts per token, the trace 3: {advice}"));
        let error = format!("{:#}", model(&format!("{{\"topk\": 2, {SIZES}"), None).err().unwrap());
        assert!(error.contains("unknown field `topk`"), "{error}");
    }

    #[test]
    fn shared_experts_and_layers_without_experts_are_counted() {
        let config = r#"{"model_type": "deepseek_v3", "num_hidden_layers": 5, "first_k_dense_replace": 2,
            "n_routed_experts": 8, "num_experts_per_tok": 2, "hidden_size": 64, "num_attention_heads": 4,
            "num_key_value_heads": 4, "q_lora_rank": null, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 12, "v_head_dim": 10, "intermediate_size": 96, "moe_intermediate_size": 32,
            "n_shared_experts": 2, "vocab_size": 100}"#;
        let size = model(config, Some(8.0)).unwrap().size;
        // Queries, compressed keys and values, keys and values, outputs.
        let attention = 64 * 4 * (8 + 12) + 64 * (16 + 8) + 16 * 4 * (12 + 10) + 4 * 10 * 64;
        assert_eq!(size.expert_bytes, [3 * 64 * 32; 3]);
        assert_eq!(size.dense_weights, attention + 64 * 8 + 3 * 64 * 2 * 32);
        assert_eq!(size.head_weights, 2 * (attention + 3 * 64 * 96) + 64 * 100);
        assert_eq!((size.dense_bytes, size.head_bytes), (2 * size.dense_weights, 2 * size.head_weights));
    }
}
