//! Which layers of a model have experts, from its `config.json`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::{io, record};
use crate::{Geometry, Place, Result, TraceError};

/// What the `config.json` of a Hugging Face model says about its experts.
///
/// The keys of all families that `transformers` has are known: `num_experts`, `n_routed_experts`, `num_local_experts`,
/// `moe_num_experts`, `num_experts_per_tok`, `moe_k`, `first_k_dense_replace`, `moe_layer_freq`, `mlp_only_layers`,
/// `decoder_sparse_step`, `expert_layer_period`, `expert_layer_offset`, `moe_layer_start_index`, `moe_layer_end_index`,
/// `moe_layer_interval`, `interleave_moe_layer_step`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// Layers of the model, dense ones counted.
    pub layers: usize,
    /// Experts a layer.
    pub experts: usize,
    /// Experts a token.
    pub top_k: usize,
    /// Layers with experts, ascending.
    pub moe_layers: Vec<usize>,
}

impl ModelConfig {
    /// A configuration is text of a few kilobytes.
    const LARGEST: u64 = 16 << 20;

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`TraceError::Io`]; [`TraceError::Malformed`]; [`TraceError::Record`] for a model without experts or with
    /// impossible numbers.
    pub fn read(path: impl AsRef<Path>) -> Result<ModelConfig> {
        let path = path.as_ref();
        let mut json = Vec::new();
        let file = File::open(path).map_err(io(path, "open the file"))?;
        file.take(Self::LARGEST).read_to_end(&mut json).map_err(io(path, "read the file"))?;
        let config: Value = serde_json::from_slice(&json).map_err(|source| TraceError::Malformed {
            path: path.to_owned(),
            format: "JSON",
            source: Box::new(source),
        })?;
        // Models of several modalities keep the language model's part apart.
        let config = config.get("text_config").unwrap_or(&config);
        Fields { path, config }.read()
    }
}

struct Fields<'a> {
    path: &'a Path,
    config: &'a Value,
}

impl Fields<'_> {
    fn read(&self) -> Result<ModelConfig> {
        let layers = self.required(&["num_hidden_layers", "num_layers", "n_layer"], Geometry::MAX_LAYERS)?;
        let names = ["num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"];
        let experts = self.required(&names, Geometry::MAX_EXPERTS)?;
        let top_k =
            self.required(&["num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts"], experts)?;
        let moe_layers: Vec<usize> = match self.config.get("moe_layer_freq") {
            // DeepSeek-V2 has a step here, MiMo and others one flag a layer.
            Some(Value::Array(flags)) => {
                (0..layers).filter(|&layer| flags.get(layer).is_some_and(|flag| flag.as_u64() == Some(1))).collect()
            }
            _ => self.by_rule(layers)?,
        };
        Ok(ModelConfig { layers, experts, top_k, moe_layers })
    }

    fn by_rule(&self, layers: usize) -> Result<Vec<usize>> {
        let number = |name, default| Ok::<usize, TraceError>(self.number(name)?.unwrap_or(default));
        let first_dense = number("first_k_dense_replace", 0)?;
        let frequency = number("moe_layer_freq", 1)?.max(1);
        let sparse_step = number("decoder_sparse_step", 1)?;
        let period = number("expert_layer_period", 1)?.max(1);
        let offset = number("expert_layer_offset", 0)?;
        let start = number("moe_layer_start_index", 0)?;
        let end = number("moe_layer_end_index", usize::MAX)?;
        let interval = number("moe_layer_interval", 1)?.max(1);
        let interleave = number("interleave_moe_layer_step", 1)?.max(1);
        let dense = self.config.get("mlp_only_layers").and_then(Value::as_array);
        let is_dense =
            |layer: usize| dense.is_some_and(|dense| dense.iter().any(|value| value.as_u64() == Some(layer as u64)));
        Ok((0..layers)
            .filter(|&layer| {
                layer >= first_dense
                    && layer % frequency == 0
                    && sparse_step > 0
                    && (layer + 1) % sparse_step == 0
                    && layer % period == offset % period
                    && (start..=end).contains(&layer)
                    && (layer + 1) % interval == 0
                    && (layer + 1) % interleave == 0
                    && !is_dense(layer)
            })
            .collect())
    }

    fn required(&self, names: &[&str], max: usize) -> Result<usize> {
        for name in names {
            if let Some(number) = self.number(name)? {
                return if (1..=max).contains(&number) {
                    Ok(number)
                } else {
                    Err(self.error(name, &number.to_string(), &format!("allowed are 1..={max}")))
                };
            }
        }
        Err(self.error(names[0], "missing", &format!("expected one of {}", names.join(", "))))
    }

    /// A number; `-1`, which some families use for "the last", is none.
    fn number(&self, name: &str) -> Result<Option<usize>> {
        match self.config.get(name) {
            None | Some(Value::Null | Value::Array(_)) => Ok(None),
            Some(value) if value.as_i64() == Some(-1) => Ok(None),
            Some(value) => {
                let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
                number.map(Some).ok_or_else(|| self.error(name, &value.to_string(), "expected a whole number"))
            }
        }
    }

    fn error(&self, field: &str, value: &str, limit: &str) -> TraceError {
        record(self.path, Place::Entry("configuration".to_owned()), field, value, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<ModelConfig> {
        let config: Value = serde_json::from_str(json).unwrap();
        Fields { path: Path::new("c"), config: &config }.read()
    }

    #[test]
    fn every_rule_for_dense_layers_is_known() {
        let moe = |rest: &str| {
            let json = format!("{{\"num_hidden_layers\": 8, \"num_experts\": 4, \"num_experts_per_tok\": 2{rest}}}");
            read(&json).unwrap().moe_layers
        };
        assert_eq!(moe(""), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(moe(", \"first_k_dense_replace\": 3, \"moe_layer_freq\": 1"), [3, 4, 5, 6, 7]);
        assert_eq!(moe(", \"moe_layer_freq\": [0, 1, 1, 0, 0, 0, 0, 1]"), [1, 2, 7]);
        assert_eq!(moe(", \"decoder_sparse_step\": 2, \"mlp_only_layers\": [3]"), [1, 5, 7]);
        assert_eq!(moe(", \"expert_layer_period\": 2, \"expert_layer_offset\": 1"), [1, 3, 5, 7]);
        assert_eq!(
            moe(", \"moe_layer_start_index\": 1, \"moe_layer_end_index\": 3, \"moe_layer_interval\": 1"),
            [1, 2, 3]
        );
        assert_eq!(moe(", \"moe_layer_start_index\": 6, \"moe_layer_end_index\": -1"), [6, 7]);
        assert_eq!(moe(", \"interleave_moe_layer_step\": 4"), [3, 7]);
    }

    #[test]
    fn impossible_configurations_are_told() {
        let message = |json: &str| read(json).unwrap_err().to_string();
        assert_eq!(
            message("{}"),
            "c, configuration: num_hidden_layers is missing, expected one of num_hidden_layers, num_layers, n_layer"
        );
        let none = "{\"num_hidden_layers\": 2, \"n_routed_experts\": 0}";
        assert_eq!(message(none), "c, configuration: n_routed_experts is 0, allowed are 1..=65535");
        let many = "{\"num_hidden_layers\": 2, \"num_experts\": 4, \"moe_k\": 5}";
        assert_eq!(message(many), "c, configuration: moe_k is 5, allowed are 1..=4");
        assert_eq!(
            message("{\"num_layers\": \"x\"}"),
            "c, configuration: num_layers is \"x\", expected a whole number"
        );
    }
}
