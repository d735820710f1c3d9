//! Parameters of a model, checked.

use std::fmt;

use moe_offload::ExpertShape;
use moe_trace::{Geometry, LayerId, MoeLayer, Stack};
use serde::{Deserialize, Serialize};

use crate::{ModelError, Result, RouterKind};

/// Parameters of an OLMoE model or of a variant of it, by their names in `config.json`.
///
/// The [default](OlmoeParams::default) is OLMoE-1B-7B (Muennighoff et al. 2024, arXiv 2409.02060, table 1 and
/// appendix B). What OLMoE does not have, from [`router`](Self::router) on, is off by default; a model that uses it is a
/// [variant](Self::is_variant).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OlmoeParams {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside an expert.
    pub intermediate_size: usize,
    /// Number of decoder layers, each with an MoE block.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads.
    pub num_key_value_heads: usize,
    /// Experts a layer.
    pub num_experts: usize,
    /// Experts a token uses in a layer: top-k.
    pub num_experts_per_tok: usize,
    /// Whether the weights of a token's experts are scaled to sum to 1.
    pub norm_topk_prob: bool,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f64,
    /// Added to the mean square under the root of RMSNorm.
    pub rms_norm_eps: f64,
    /// Bound on the absolute values of queries, keys and values.
    pub clip_qkv: Option<f64>,
    /// Whether the token embedding is the output projection too.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the normal distribution that new weights are drawn from.
    pub initializer_range: f64,
    /// Token ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// How the routers choose experts.
    pub router: RouterKind,
    /// Seed of what the [`Hash`](RouterKind::Hash) and [`Position`](RouterKind::Position) routers draw; 0 for any other.
    pub router_seed: u64,
    /// Domains that the [`Reference`](RouterKind::Reference) router tells apart; 0 for any other.
    pub num_domains: usize,
    /// Experts of `intermediate_size` a layer that every token uses, with weight 1.
    pub n_shared_experts: usize,
    /// Layers that have a dense MLP instead of an MoE block, ascending.
    pub mlp_only_layers: Vec<usize>,
    /// Width inside a dense MLP; 0 if there is none.
    pub dense_intermediate_size: usize,
}

impl OlmoeParams {
    /// Whether the parameters ask for what `OlmoeForCausalLM` of Hugging Face does not have.
    pub fn is_variant(&self) -> bool {
        self.router != RouterKind::Softmax || self.n_shared_experts > 0 || !self.mlp_only_layers.is_empty()
    }
}

impl Default for OlmoeParams {
    fn default() -> OlmoeParams {
        OlmoeParams {
            vocab_size: 50304,
            hidden_size: 2048,
            intermediate_size: 1024,
            num_hidden_layers: 16,
            num_attention_heads: 16,
            num_key_value_heads: 16,
            num_experts: 64,
            num_experts_per_tok: 8,
            norm_topk_prob: false,
            max_position_embeddings: 4096,
            rope_theta: 10000.0,
            rms_norm_eps: 1e-5,
            clip_qkv: None,
            tie_word_embeddings: false,
            initializer_range: 0.02,
            eos_token_ids: vec![50279],
            router: RouterKind::Softmax,
            router_seed: 0,
            num_domains: 0,
            n_shared_experts: 0,
            mlp_only_layers: Vec::new(),
            dense_intermediate_size: 0,
        }
    }
}

/// Parameters that make a model: sizes fit together, counts are positive, numbers are finite.
///
/// ```
/// use moe_model::{OlmoeConfig, OlmoeParams};
/// let config = OlmoeConfig::new(OlmoeParams { num_experts: 32, num_experts_per_tok: 4, ..Default::default() })?;
/// assert_eq!(config.geometry().experts(), 32);
/// assert_eq!(config.head_dim(), 128);
/// # Ok::<(), moe_model::ModelError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct OlmoeConfig {
    params: OlmoeParams,
    geometry: Geometry,
}

impl OlmoeConfig {
    /// Checks the parameters.
    ///
    /// # Errors
    /// [`ModelError::Config`] names the first parameter that is out of bounds.
    pub fn new(params: OlmoeParams) -> Result<OlmoeConfig> {
        let geometry = validate(&params)
            .and_then(|()| routing_geometry(&params))
            .map_err(|Problem { field, value, limit }| ModelError::Config { field, value, limit })?;
        Ok(OlmoeConfig { params, geometry })
    }

    /// The parameters.
    pub fn params(&self) -> &OlmoeParams {
        &self.params
    }

    /// Width of an attention head.
    pub fn head_dim(&self) -> usize {
        self.params.hidden_size / self.params.num_attention_heads
    }

    /// MoE layers, experts and top-k; a layer's id is its place among the MoE layers.
    pub fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    /// Whether a layer, counted among all, has an MoE block.
    pub(crate) fn is_moe(&self, layer: usize) -> bool {
        self.params.mlp_only_layers.binary_search(&layer).is_err()
    }

    /// The MoE layer that is layer number `layer` of the model.
    pub(crate) fn moe_layer(&self, layer: usize) -> Option<LayerId> {
        let moe_layers = self.geometry.layer_ids().zip(self.geometry.moe_layers());
        moe_layers.filter(|(_, moe)| moe.model_layer as usize == layer).map(|(id, _)| id).next()
    }

    /// The number of an MoE layer among all layers.
    pub(crate) fn model_layer(&self, layer: LayerId) -> usize {
        self.geometry.moe_layers()[layer.index()].model_layer as usize
    }

    /// Sizes of the experts.
    pub fn expert_shape(&self) -> ExpertShape {
        ExpertShape {
            layers: self.geometry.layers(),
            experts: self.params.num_experts,
            hidden: self.params.hidden_size,
            intermediate: self.params.intermediate_size,
        }
    }
}

/// A parameter that is out of bounds, before it is known whether it came from a file.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) field: &'static str,
    pub(crate) value: String,
    pub(crate) limit: String,
}

impl Problem {
    pub(crate) fn new(field: &'static str, value: impl fmt::Display, limit: impl Into<String>) -> Problem {
        Problem { field, value: value.to_string(), limit: limit.into() }
    }
}

/// Positions are rotated in f32, which holds integers exactly up to here.
const MAX_POSITIONS: usize = 1 << 24;

fn validate(params: &OlmoeParams) -> Result<(), Problem> {
    for (field, value) in [
        ("vocab_size", params.vocab_size),
        ("hidden_size", params.hidden_size),
        ("intermediate_size", params.intermediate_size),
        ("num_hidden_layers", params.num_hidden_layers),
        ("num_attention_heads", params.num_attention_heads),
        ("num_key_value_heads", params.num_key_value_heads),
        ("num_experts", params.num_experts),
        ("num_experts_per_tok", params.num_experts_per_tok),
        ("max_position_embeddings", params.max_position_embeddings),
    ] {
        if value == 0 {
            return Err(Problem::new(field, value, "must be at least 1"));
        }
        if u32::try_from(value).is_err() {
            return Err(Problem::new(field, value, format!("must be at most {}", u32::MAX)));
        }
    }
    if params.max_position_embeddings > MAX_POSITIONS {
        let limit = format!("must be at most {MAX_POSITIONS}");
        return Err(Problem::new("max_position_embeddings", params.max_position_embeddings, limit));
    }
    for (field, value) in [
        ("rope_theta", Some(params.rope_theta)),
        ("rms_norm_eps", Some(params.rms_norm_eps)),
        ("clip_qkv", params.clip_qkv),
        ("initializer_range", Some(params.initializer_range)),
    ] {
        if value.is_some_and(|value| !value.is_finite() || value <= 0.0) {
            return Err(Problem::new(field, value.unwrap_or_default(), "must be positive and finite"));
        }
    }
    let (hidden, heads) = (params.hidden_size, params.num_attention_heads);
    if hidden % (2 * heads) != 0 {
        let limit = format!("must be a multiple of twice num_attention_heads {heads}");
        return Err(Problem::new("hidden_size", hidden, limit));
    }
    if heads % params.num_key_value_heads != 0 {
        let limit = format!("must divide num_attention_heads {heads}");
        return Err(Problem::new("num_key_value_heads", params.num_key_value_heads, limit));
    }
    if params.num_experts_per_tok > params.num_experts {
        let limit = format!("must be at most num_experts {}", params.num_experts);
        return Err(Problem::new("num_experts_per_tok", params.num_experts_per_tok, limit));
    }
    validate_variant(params)?;
    if let Some(id) = params.eos_token_ids.iter().find(|&&id| id as usize >= params.vocab_size) {
        return Err(Problem::new("eos_token_id", id, format!("must be below vocab_size {}", params.vocab_size)));
    }
    Ok(())
}

fn validate_variant(params: &OlmoeParams) -> Result<(), Problem> {
    let (layers, experts) = (params.num_hidden_layers, params.num_experts);
    for (index, &layer) in params.mlp_only_layers.iter().enumerate() {
        if layer >= layers {
            let limit = format!("must be below num_hidden_layers {layers}");
            return Err(Problem::new("mlp_only_layers", layer, limit));
        }
        if index > 0 && layer <= params.mlp_only_layers[index - 1] {
            return Err(Problem::new("mlp_only_layers", layer, "must be in ascending order"));
        }
    }
    if params.mlp_only_layers.len() == layers {
        return Err(Problem::new("mlp_only_layers", format!("all {layers} layers"), "must leave an MoE layer"));
    }
    let dense = params.dense_intermediate_size;
    if (dense > 0) == params.mlp_only_layers.is_empty() {
        let limit = if dense > 0 { "must be 0 without mlp_only_layers" } else { "must be at least 1" };
        return Err(Problem::new("dense_intermediate_size", dense, limit));
    }
    for (field, value, max) in [
        ("dense_intermediate_size", dense, u32::MAX as usize),
        ("n_shared_experts", params.n_shared_experts, Geometry::MAX_EXPERTS),
    ] {
        if value > max {
            return Err(Problem::new(field, value, format!("must be at most {max}")));
        }
    }
    let domains = params.num_domains;
    match params.router {
        RouterKind::Reference => {
            let max = experts / params.num_experts_per_tok;
            if !(1..=max).contains(&domains) {
                let k = params.num_experts_per_tok;
                let limit = format!("must be 1..={max}, each domain needs {k} of {experts} experts for itself");
                return Err(Problem::new("num_domains", domains, limit));
            }
        }
        router if domains > 0 => {
            return Err(Problem::new("num_domains", domains, format!("must be 0 for the router {router}")));
        }
        _ => {}
    }
    if params.router_seed > 0 && params.router.has_logits() {
        let limit = format!("must be 0 for the router {}", params.router);
        return Err(Problem::new("router_seed", params.router_seed, limit));
    }
    Ok(())
}

/// The geometry of the routing, where only the largest counts can still be out of bounds.
fn routing_geometry(params: &OlmoeParams) -> Result<Geometry, Problem> {
    if params.num_experts > Geometry::MAX_EXPERTS {
        let limit = format!("must be at most {}", Geometry::MAX_EXPERTS);
        return Err(Problem::new("num_experts", params.num_experts, limit));
    }
    let too_many = || {
        let layers = Geometry::MAX_LAYERS.min(Geometry::MAX_POOL / params.num_experts);
        let limit = format!("must be at most {layers} with {} experts a layer", params.num_experts);
        Problem::new("num_hidden_layers", params.num_hidden_layers, limit)
    };
    if params.num_hidden_layers > Geometry::MAX_LAYERS {
        return Err(too_many());
    }
    let is_moe = |layer: &u32| params.mlp_only_layers.binary_search(&(*layer as usize)).is_err();
    let layers = (0u32..).take(params.num_hidden_layers).filter(is_moe);
    let layers = layers.map(|model_layer| MoeLayer { model_layer, stack: Stack::Decoder }).collect();
    Geometry::new(layers, params.num_experts, params.num_experts_per_tok).map_err(|_| too_many())
}
