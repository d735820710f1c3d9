//! `config.json` in the generations that are in circulation.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::Problem;
use crate::foreign_fields;
use crate::{ModelError, OlmoeConfig, OlmoeParams, Result, RouterKind};

/// Names of OLMoE in `architectures` and `model_type`.
const OLMOE: [&str; 2] = ["OlmoeForCausalLM", "olmoe"];
/// Names of the variants, which are this crate's own: no other program may take such a folder for OLMoE.
const VARIANT: [&str; 2] = ["OlmoeVariantForCausalLM", "olmoe_variant"];

/// The fields that matter. Older files have `rope_theta` at the top, newer ones have `rope_parameters`; the number of
/// experts goes by two names; either generation writes `null` for what is not set.
#[derive(Debug, Deserialize)]
struct ConfigFile {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    num_experts: Option<usize>,
    num_local_experts: Option<usize>,
    num_experts_per_tok: Option<usize>,
    norm_topk_prob: Option<bool>,
    max_position_embeddings: Option<usize>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    rms_norm_eps: Option<f64>,
    clip_qkv: Option<f64>,
    tie_word_embeddings: Option<bool>,
    initializer_range: Option<f64>,
    eos_token_id: Option<TokenIds>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    router: Option<RouterKind>,
    router_seed: Option<u64>,
    num_domains: Option<usize>,
    n_shared_experts: Option<usize>,
    mlp_only_layers: Option<Vec<usize>>,
    dense_intermediate_size: Option<usize>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Parameters of the rotary embedding; `type` is the older name of `rope_type`.
#[derive(Debug, Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    r#type: Option<String>,
    partial_rotary_factor: Option<f64>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl OlmoeConfig {
    /// Reads `config.json` as transformers writes it, before or since version 5.
    ///
    /// # Errors
    /// [`ModelError::Io`], [`ModelError::Json`]; [`ModelError::ConfigFile`] names a field that is missing, out of
    /// bounds, contradicts another or asks for what is not supported: another architecture or activation, scaled or
    /// partial rotary embeddings, biases, a sliding window, factors and routings of other architectures.
    pub fn from_file(path: impl AsRef<Path>) -> Result<OlmoeConfig> {
        let path = path.as_ref();
        let text = std::fs::read(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        let file: ConfigFile =
            serde_json::from_slice(&text).map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
        let in_file = |field, value, limit| ModelError::ConfigFile { path: path.to_owned(), field, value, limit };
        let params = file.into_params().map_err(|Problem { field, value, limit }| in_file(field, value, limit))?;
        OlmoeConfig::new(params).map_err(|error| match error {
            ModelError::Config { field, value, limit } => in_file(field, value, limit),
            other => other,
        })
    }

    /// The configuration as a `config.json` that transformers of either generation reads; that of a
    /// [variant](OlmoeParams::is_variant) names an architecture of its own and holds the fields that OLMoE lacks.
    pub fn to_json(&self) -> Value {
        let params = self.params();
        let [architecture, model_type] = if params.is_variant() { VARIANT } else { OLMOE };
        let eos = match params.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let mut config = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "vocab_size": params.vocab_size,
            "hidden_size": params.hidden_size,
            "intermediate_size": params.intermediate_size,
            "num_hidden_layers": params.num_hidden_layers,
            "num_attention_heads": params.num_attention_heads,
            "num_key_value_heads": params.num_key_value_heads,
            "num_experts": params.num_experts,
            "num_experts_per_tok": params.num_experts_per_tok,
            "norm_topk_prob": params.norm_topk_prob,
            "max_position_embeddings": params.max_position_embeddings,
            "rope_theta": params.rope_theta,
            "rope_parameters": { "rope_theta": params.rope_theta, "rope_type": "default" },
            "rms_norm_eps": params.rms_norm_eps,
            "clip_qkv": params.clip_qkv,
            "tie_word_embeddings": params.tie_word_embeddings,
            "initializer_range": params.initializer_range,
            "bos_token_id": null,
            "eos_token_id": eos,
            "pad_token_id": null,
            "hidden_act": "silu",
            "attention_bias": false,
            "attention_dropout": 0.0,
        });
        if params.is_variant() {
            config["router"] = json!(params.router);
            config["router_seed"] = json!(params.router_seed);
            config["num_domains"] = json!(params.num_domains);
            config["n_shared_experts"] = json!(params.n_shared_experts);
            config["mlp_only_layers"] = json!(params.mlp_only_layers);
            config["dense_intermediate_size"] = json!(params.dense_intermediate_size);
        }
        config
    }
}

impl ConfigFile {
    fn into_params(self) -> Result<OlmoeParams, Problem> {
        self.check_supported()?;
        let rope_theta = self.rope_theta()?;
        let required = |field, value: Option<usize>| value.ok_or(Problem::new(field, "missing", "it is required"));
        let defaults = OlmoeParams::default();
        let hidden_size = required("hidden_size", self.hidden_size)?;
        let num_attention_heads = required("num_attention_heads", self.num_attention_heads)?;
        if let (Some(head_dim), Some(implied)) = (self.head_dim, hidden_size.checked_div(num_attention_heads))
            && head_dim != implied
        {
            let limit = format!("must be hidden_size / num_attention_heads {implied}");
            return Err(Problem::new("head_dim", head_dim, limit));
        }
        let variant = self.check_architecture()?;
        if let (Some(experts), Some(local)) = (self.num_experts, self.num_local_experts)
            && experts != local
        {
            return Err(Problem::new("num_local_experts", local, format!("must be num_experts {experts}")));
        }
        let params = OlmoeParams {
            vocab_size: required("vocab_size", self.vocab_size)?,
            hidden_size,
            intermediate_size: required("intermediate_size", self.intermediate_size)?,
            num_hidden_layers: required("num_hidden_layers", self.num_hidden_layers)?,
            num_attention_heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(num_attention_heads),
            num_experts: required("num_experts", self.num_experts.or(self.num_local_experts))?,
            num_experts_per_tok: required("num_experts_per_tok", self.num_experts_per_tok)?,
            norm_topk_prob: self.norm_topk_prob.unwrap_or(false),
            max_position_embeddings: required("max_position_embeddings", self.max_position_embeddings)?,
            rope_theta,
            rms_norm_eps: self.rms_norm_eps.unwrap_or(defaults.rms_norm_eps),
            clip_qkv: self.clip_qkv,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
            initializer_range: self.initializer_range.unwrap_or(defaults.initializer_range),
            eos_token_ids: match self.eos_token_id {
                None => Vec::new(),
                Some(TokenIds::One(id)) => vec![id],
                Some(TokenIds::Many(ids)) => ids,
            },
            router: self.router.unwrap_or_default(),
            router_seed: self.router_seed.unwrap_or(0),
            num_domains: self.num_domains.unwrap_or(0),
            n_shared_experts: self.n_shared_experts.unwrap_or(0),
            mlp_only_layers: self.mlp_only_layers.unwrap_or_default(),
            dense_intermediate_size: self.dense_intermediate_size.unwrap_or(0),
        };
        match params.is_variant() && !variant {
            true => Err(Problem::new("model_type", OLMOE[1], format!("must be {} for what OLMoE lacks", VARIANT[1]))),
            false => Ok(params),
        }
    }

    /// Whether the file names the variants.
    fn check_architecture(&self) -> Result<bool, Problem> {
        let names = |name: &str, index: usize| [OLMOE[index], VARIANT[index]].iter().position(|&known| known == name);
        let (field, found, known) = match (&self.architectures, &self.model_type) {
            (Some(found), _) if !found.is_empty() => {
                ("architectures", found.join(", "), found.iter().find_map(|name| names(name, 0)))
            }
            (_, name) => {
                let name = name.as_deref().unwrap_or("missing");
                ("model_type", name.to_owned(), names(name, 1))
            }
        };
        let supported = if field == "architectures" { OLMOE[0] } else { OLMOE[1] };
        let Some(known) = known else { return Err(Problem::new(field, found, format!("supported is {supported}"))) };
        match &self.model_type {
            Some(name) if names(name, 1) != Some(known) => {
                let expected = [OLMOE[1], VARIANT[1]][known];
                Err(Problem::new("model_type", name, format!("must be {expected} for the architecture {found}")))
            }
            _ => Ok(known == 1),
        }
    }

    fn check_supported(&self) -> Result<(), Problem> {
        self.check_architecture()?;
        if let Some(name) = self.hidden_act.as_deref().filter(|&name| name != "silu") {
            return Err(Problem::new("hidden_act", name, "supported is silu"));
        }
        if self.attention_bias == Some(true) {
            return Err(Problem::new("attention_bias", true, "supported is false"));
        }
        if self.use_sliding_window != Some(false)
            && let Some(window) = self.sliding_window.filter(|&window| window > 0)
        {
            return Err(Problem::new("sliding_window", window, "supported is full attention"));
        }
        foreign_fields::check(&self.others, self.intermediate_size)
    }

    fn rope_theta(&self) -> Result<f64, Problem> {
        let mut found: Option<f64> = None;
        for (field, rope) in [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)] {
            let Some(rope) = rope else { continue };
            if let Some(name) = rope.rope_type.as_deref().or(rope.r#type.as_deref()).filter(|&name| name != "default") {
                return Err(Problem::new(field, name, "supported is the rope_type default"));
            }
            if let Some(factor) = rope.partial_rotary_factor.filter(|&factor| factor != 1.0) {
                return Err(Problem::new("partial_rotary_factor", factor, "supported is 1"));
            }
            if let Some((name, value)) = rope.others.iter().find(|(_, value)| !value.is_null()) {
                let limit = "supported are rope_theta and the rope_type default";
                return Err(Problem::new(field, format_args!("{{{name:?}: {value}}}"), limit));
            }
            found = rope.rope_theta.or(found);
        }
        match (found, self.rope_theta) {
            (Some(nested), Some(theta)) if nested != theta => {
                Err(Problem::new("rope_theta", theta, format!("must be that of rope_parameters {nested}")))
            }
            (nested, theta) => Ok(nested.or(theta).unwrap_or(OlmoeParams::default().rope_theta)),
        }
    }
}
