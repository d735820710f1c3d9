//! Sizes of the parts of a model.

use std::path::Path;

use super::fields::Fields;
use super::{ModelConfig, file};
use crate::{Result, TraceError};

/// The sizes of a model: what follows from its configuration about the number of weights of each part.
///
/// Every expert and every dense feed-forward network has three matrices. Norms, biases and the gate of a shared expert
/// are not counted.
///
/// ```
/// use moe_trace::ModelSizes;
/// let sizes = ModelSizes::find("qwen3-30b-a3b")?;
/// assert_eq!((sizes.config.experts, sizes.expert_weights()), (128, 3 * 2048 * 768));
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSizes {
    /// The layers and experts of the model.
    pub config: ModelConfig,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Number of query heads.
    pub heads: u64,
    /// Number of key and value heads.
    pub kv_heads: u64,
    /// Width of a query head.
    pub head_dim: u64,
    /// Number of token ids.
    pub vocabulary: u64,
    /// Width inside an expert.
    pub expert_intermediate: u64,
    /// Width inside the feed-forward network of a layer without experts.
    pub dense_intermediate: u64,
    /// Width inside all shared experts of a layer together, 0 if there is none.
    pub shared_intermediate: u64,
    /// Weights of the projections of a layer's attention.
    pub attention_weights: u64,
}

/// Where the sizes of a family are in its configuration.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) attention: Attention,
    /// Key of the width of an expert.
    pub(super) expert: &'static str,
    /// Key of the width of a dense layer.
    pub(super) dense: &'static str,
    pub(super) shared: Shared,
}

/// The projections of an attention layer.
#[derive(Clone, Copy)]
pub(super) enum Attention {
    /// Query, key, value and output projections of heads of one width, `hidden / heads` by default for 0.
    Grouped { head_dim: u64 },
    /// Keys and values that are compressed together, queries that may be.
    Latent,
}

/// The experts that every token uses.
#[derive(Clone, Copy)]
pub(super) enum Shared {
    /// There is none.
    None,
    /// A number of experts, each of the width of a routed one.
    Experts(&'static str),
    /// Their width together.
    Width(&'static str),
}

/// The models known by name: the keys of their published configurations that sizes follow from.
const NAMED: [(&str, &str); 2] = [
    (
        "gpt-oss-20b",
        r#"{"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 4,
        "hidden_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64,
        "intermediate_size": 2880, "vocab_size": 201088}"#,
    ),
    (
        "qwen3-30b-a3b",
        r#"{"model_type": "qwen3_moe", "num_hidden_layers": 48, "num_experts": 128, "num_experts_per_tok": 8,
        "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "intermediate_size": 6144, "moe_intermediate_size": 768, "vocab_size": 151936}"#,
    ),
];

impl ModelSizes {
    /// The largest width, and the largest number of heads or token ids.
    pub const MAX: usize = 1 << 20;

    /// Names of the models that [`ModelSizes::find`] knows by name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(name, _)| *name)
    }

    /// Reads the sizes of a model given by a name that is known, by the folder of its checkpoint, or by its
    /// `config.json`.
    ///
    /// # Errors
    /// [`TraceError::UnknownModel`]; those of [`ModelSizes::read`].
    pub fn find(model: &str) -> Result<ModelSizes> {
        if let Some((name, json)) = NAMED.iter().find(|(name, _)| *name == model) {
            return ModelSizes::parse(Path::new(name), json.as_bytes());
        }
        let path = Path::new(model);
        if path.is_dir() {
            return ModelSizes::read(path.join("config.json"));
        }
        if path.is_file() {
            return ModelSizes::read(path);
        }
        let known = ModelSizes::names().collect::<Vec<_>>().join(", ");
        Err(TraceError::UnknownModel { name: model.to_owned(), known })
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// As [`ModelConfig::read`]; [`TraceError::Record`] for a family whose sizes do not follow from the keys that are
    /// known here, an encoder beside a decoder, and sizes that are missing, 0 or above [`ModelSizes::MAX`].
    pub fn read(path: impl AsRef<Path>) -> Result<ModelSizes> {
        let path = path.as_ref();
        ModelSizes::parse(path, &file::read(path)?)
    }

    /// Parses the bytes of a `config.json`; errors name `path`.
    ///
    /// # Errors
    /// As [`ModelSizes::read`].
    pub fn parse(path: &Path, json: &[u8]) -> Result<ModelSizes> {
        let root = file::json(path, json)?;
        let fields = Fields::of_language_model(path, &root)?;
        let config = ModelConfig::of(&fields)?;
        let Some(shape) = &fields.family().shape else {
            let limit = "the sizes of this family's parts are not known; give a file of sizes instead";
            return Err(fields.error("model_type", fields.name(), limit));
        };
        let size = |key: &str| Ok::<u64, TraceError>(fields.one_of(&[key], 0, 1, Self::MAX)? as u64);
        let or_none = |key: &str| match fields.whole(key)? {
            None | Some(0) => Ok::<u64, TraceError>(0),
            Some(_) => size(key),
        };
        let (hidden, heads) = (size("hidden_size")?, size("num_attention_heads")?);
        let heads_of = |head_dim| heads_of(&fields, head_dim, hidden, heads);
        let expert_intermediate = size(shape.expert)?;
        let dense_intermediate = if config.decoder.moe_layers.len() == config.decoder.layers {
            or_none(shape.dense)?
        } else {
            size(shape.dense)?
        };
        let shared_intermediate = match shape.shared {
            Shared::None => 0,
            Shared::Width(key) => or_none(key)?,
            Shared::Experts(key) => or_none(key)? * expert_intermediate,
        };
        let (kv_heads, head_dim, attention_weights) = match shape.attention {
            Attention::Grouped { head_dim } => {
                let (kv_heads, head_dim) = heads_of(head_dim)?;
                (kv_heads, head_dim, hidden * (2 * heads + 2 * kv_heads) * head_dim)
            }
            Attention::Latent => {
                let (rope, rest, value) = (size("qk_rope_head_dim")?, size("qk_nope_head_dim")?, size("v_head_dim")?);
                let rank = size("kv_lora_rank")?;
                let query = match or_none("q_lora_rank")? {
                    0 => hidden * heads * (rope + rest),
                    rank => hidden * rank + rank * heads * (rope + rest),
                };
                let keys_and_values = hidden * (rank + rope) + rank * heads * (rest + value);
                (heads, rope + rest, query + keys_and_values + heads * value * hidden)
            }
        };
        let vocabulary = size("vocab_size")?;
        Ok(ModelSizes {
            config,
            hidden,
            heads,
            kv_heads,
            head_dim,
            vocabulary,
            expert_intermediate,
            dense_intermediate,
            shared_intermediate,
            attention_weights,
        })
    }

    /// Returns the number of layers without experts.
    pub fn dense_layers(&self) -> usize {
        self.config.decoder.layers - self.config.decoder.moe_layers.len()
    }

    /// Returns the weights of one expert.
    pub fn expert_weights(&self) -> u64 {
        3 * self.hidden * self.expert_intermediate
    }

    /// Returns the weights of all shared experts of a layer together.
    pub fn shared_weights(&self) -> u64 {
        3 * self.hidden * self.shared_intermediate
    }

    /// Returns the weights of the feed-forward network of a layer without experts.
    pub fn dense_layer_weights(&self) -> u64 {
        3 * self.hidden * self.dense_intermediate
    }

    /// Returns the weights of the router of a layer.
    pub fn router_weights(&self) -> u64 {
        self.hidden * self.config.experts as u64
    }

    /// Returns the weights of the output projection.
    pub fn head_weights(&self) -> u64 {
        self.hidden * self.vocabulary
    }
}

/// Key and value heads, and the width of a head.
fn heads_of(fields: &Fields<'_>, default: u64, hidden: u64, heads: u64) -> Result<(u64, u64)> {
    let size = |key: &str, default: u64| {
        let default = usize::try_from(default).unwrap_or(ModelSizes::MAX);
        Ok::<u64, TraceError>(fields.one_of(&[key], default, 1, ModelSizes::MAX)? as u64)
    };
    let kv_heads = match fields.is_null("num_key_value_heads") {
        true => heads,
        false => size("num_key_value_heads", 0)?,
    };
    let head_dim = size("head_dim", if default == 0 { hidden / heads } else { default })?;
    if kv_heads > heads {
        let limit = format!("num_attention_heads is {heads}");
        return Err(fields.error("num_key_value_heads", &kv_heads.to_string(), &limit));
    }
    Ok((kv_heads, head_dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ModelSizes> {
        ModelSizes::parse(Path::new("c"), json.as_bytes())
    }

    #[test]
    fn known_models_have_their_published_numbers_of_weights() {
        let qwen = ModelSizes::find("qwen3-30b-a3b").unwrap();
        assert_eq!(48 * 128 * qwen.expert_weights(), 28_991_029_248);
        assert_eq!(qwen.attention_weights, 2048 * (2 * 32 + 2 * 4) * 128);
        let unknown = ModelSizes::find("gpt-4").unwrap_err().to_string();
        assert!(unknown.contains("(gpt-oss-20b, qwen3-30b-a3b)"), "{unknown}");
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/default");
        assert_eq!(ModelSizes::find(folder).unwrap().expert_intermediate, 64);
    }

    #[test]
    fn dense_layers_and_shared_experts_are_counted() {
        let sizes = parse(
            "{\"model_type\": \"deepseek_v3\", \"num_hidden_layers\": 5, \"first_k_dense_replace\": 2,
            \"n_routed_experts\": 8, \"num_experts_per_tok\": 2, \"hidden_size\": 64, \"num_attention_heads\": 4,
            \"num_key_value_heads\": 4, \"q_lora_rank\": 24, \"kv_lora_rank\": 16, \"qk_rope_head_dim\": 8,
            \"qk_nope_head_dim\": 12, \"v_head_dim\": 10, \"intermediate_size\": 96, \"moe_intermediate_size\": 32,
            \"n_shared_experts\": 2, \"vocab_size\": 100}",
        )
        .unwrap();
        assert_eq!((sizes.dense_layers(), sizes.config.decoder.moe_layers.len()), (2, 3));
        assert_eq!((sizes.expert_weights(), sizes.shared_weights()), (3 * 64 * 32, 3 * 64 * 2 * 32));
        assert_eq!(
            (sizes.dense_layer_weights(), sizes.router_weights(), sizes.head_weights()),
            (3 * 64 * 96, 512, 6400)
        );
        // q_a, q_b, kv_a, kv_b, o.
        let attention = 64 * 24 + 24 * 4 * (8 + 12) + 64 * (16 + 8) + 16 * 4 * (12 + 10) + 4 * 10 * 64;
        assert_eq!(sizes.attention_weights, attention);
    }

    #[test]
    fn sizes_that_are_missing_or_impossible_are_refused() {
        let message = |rest: &str| {
            let json = format!("{{\"model_type\": \"mixtral\", \"num_attention_heads\": 4{rest}}}");
            parse(&json).unwrap_err().to_string()
        };
        assert!(message("").contains("hidden_size is missing"));
        assert!(message(", \"hidden_size\": 1048577").contains("hidden_size is 1048577, allowed are 1..=1048576"));
        let sized = ", \"hidden_size\": 8, \"intermediate_size\": 8, \"vocab_size\": 9";
        assert!(message(sized).contains("num_key_value_heads is missing"));
        let many = format!("{sized}, \"num_key_value_heads\": 5");
        assert!(message(&many).contains("num_key_value_heads is 5, num_attention_heads is 4"));
        let hybrid = parse("{\"model_type\": \"jamba\"}").unwrap_err().to_string();
        assert!(hybrid.contains("model_type is jamba, the sizes of this family's parts are not known"), "{hybrid}");
    }
}
