//! Fields of other architectures in `config.json` that would change what a model computes.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::Problem;

/// A value under which a field changes nothing, beside null.
#[derive(Clone, Copy, Debug)]
enum Neutral {
    /// Only null.
    Absent,
    False,
    True,
    Number(f64),
    /// A name, or a list of nothing but this name.
    Name(&'static str),
    /// No entry.
    Empty,
}

/// Fields, and the value that is the same as OLMoE without the field.
const FIELDS: [(&str, Neutral); 34] = [
    // Attention.
    ("mlp_bias", Neutral::False),
    ("qkv_bias", Neutral::False),
    ("use_qkv_bias", Neutral::False),
    ("use_bias", Neutral::False),
    ("attention_out_bias", Neutral::False),
    ("use_qk_norm", Neutral::True),
    ("qk_layernorm", Neutral::True),
    ("partial_rotary_factor", Neutral::Number(1.0)),
    ("rope_interleave", Neutral::False),
    ("no_rope_layers", Neutral::Empty),
    ("layer_types", Neutral::Name("full_attention")),
    ("attention_multiplier", Neutral::Absent),
    ("query_pre_attn_scalar", Neutral::Absent),
    ("attn_logit_softcapping", Neutral::Absent),
    ("attention_chunk_size", Neutral::Absent),
    ("kv_lora_rank", Neutral::Absent),
    ("v_head_dim", Neutral::Absent),
    // Factors and bounds.
    ("embedding_multiplier", Neutral::Number(1.0)),
    ("residual_multiplier", Neutral::Number(1.0)),
    ("logits_scaling", Neutral::Number(1.0)),
    ("logit_scale", Neutral::Number(1.0)),
    ("final_logit_softcapping", Neutral::Absent),
    ("swiglu_limit", Neutral::Absent),
    // Routing.
    ("routed_scaling_factor", Neutral::Number(1.0)),
    ("scoring_func", Neutral::Name("softmax")),
    ("n_group", Neutral::Number(1.0)),
    ("topk_group", Neutral::Number(1.0)),
    // Layers and experts.
    ("first_k_dense_replace", Neutral::Number(0.0)),
    ("decoder_sparse_step", Neutral::Number(1.0)),
    ("interleave_moe_layer_step", Neutral::Number(1.0)),
    ("mlp_layer_types", Neutral::Name("sparse")),
    ("num_shared_experts", Neutral::Number(0.0)),
    ("shared_expert_intermediate_size", Neutral::Number(0.0)),
    ("quantization_config", Neutral::Absent),
];

/// Refuses a field that asks for another architecture's arithmetic; `intermediate_size` is the width of an expert.
pub(crate) fn check(fields: &BTreeMap<String, Value>, intermediate_size: Option<usize>) -> Result<(), Problem> {
    for (field, neutral) in FIELDS {
        if let Some(value) = fields.get(field).filter(|value| !neutral.is(value)) {
            return Err(Problem::new(field, value, neutral.limit()));
        }
    }
    match fields.get("moe_intermediate_size").and_then(Value::as_u64) {
        Some(width) if intermediate_size.is_some_and(|size| size as u64 != width) => {
            Err(Problem::new("moe_intermediate_size", width, "must be intermediate_size, the width of an expert"))
        }
        _ => Ok(()),
    }
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        if value.is_null() {
            return true;
        }
        match self {
            Neutral::Absent => false,
            Neutral::False => *value == Value::Bool(false),
            Neutral::True => *value == Value::Bool(true),
            Neutral::Number(number) => value.as_f64() == Some(number),
            Neutral::Name(name) => match value {
                Value::Array(names) => names.iter().all(|found| found == name),
                found => found == name,
            },
            Neutral::Empty => value.as_array().is_some_and(Vec::is_empty),
        }
    }

    fn limit(self) -> String {
        match self {
            Neutral::Absent => "supported is null".to_owned(),
            Neutral::False => "supported is false".to_owned(),
            Neutral::True => "supported is true".to_owned(),
            Neutral::Number(number) => format!("supported is {number}"),
            Neutral::Name(name) => format!("supported is {name}"),
            Neutral::Empty => "supported is an empty list".to_owned(),
        }
    }
}
