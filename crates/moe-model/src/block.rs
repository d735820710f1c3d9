//! One decoder layer.

use candle_core::Tensor;
use candle_nn::{Init, VarBuilder};
use moe_offload::{ExpertBank, ExpertWeights, Routes};
use moe_trace::{LayerId, Phase};

use crate::attention::{Attention, Span};
use crate::kernels::{CausalMask, Kernels};
use crate::kv_cache::KvCache;
use crate::norm::RmsNorm;
use crate::rope::Rotation;
use crate::routed::Routed;
use crate::router::{Router, RouterOutput, TokenView};
use crate::tensors::mlp_names;
use crate::{OlmoeConfig, Result};

/// What all layers of a forward pass share.
pub(crate) struct Pass<'a> {
    pub(crate) tokens: TokenView<'a>,
    pub(crate) bank: &'a dyn ExpertBank,
}

/// Attention and a feed-forward part, each behind a norm and around a residual connection.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Number of the layer among all.
    layer: usize,
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

/// What a layer does with a token by itself.
#[derive(Clone, Debug)]
enum FeedForward {
    /// Experts that a router chooses, and an MLP that every token goes through.
    Moe {
        layer: LayerId,
        router: Router,
        shared: Option<ExpertWeights>,
    },
    Dense(ExpertWeights),
}

impl Block {
    /// Creates layer number `layer`; `moe_layer` is its id if it has experts.
    pub(crate) fn new(
        config: &OlmoeConfig,
        layer: usize,
        moe_layer: Option<LayerId>,
        vb: &VarBuilder<'_>,
    ) -> Result<Block> {
        let params = config.params();
        let norm = |name: &str| RmsNorm::new(params.hidden_size, params.rms_norm_eps, &vb.pp(name));
        let shared_width = params.n_shared_experts * params.intermediate_size;
        let shared = || mlp(config, shared_width, "mlp.shared_experts", vb);
        Ok(Block {
            layer,
            attention_norm: norm("input_layernorm")?,
            attention: Attention::new(config, &vb.pp("self_attn"))?,
            feed_forward_norm: norm("post_attention_layernorm")?,
            feed_forward: match moe_layer {
                Some(layer) => FeedForward::Moe {
                    layer,
                    router: Router::new(config, layer, &vb.pp("mlp.gate"))?,
                    shared: (shared_width > 0).then(shared).transpose()?,
                },
                None => FeedForward::Dense(mlp(config, params.dense_intermediate_size, "mlp", vb)?),
            },
        })
    }

    /// Runs the layer on a ragged batch, `x` `[tokens, hidden]`; also returns what its router chose, if it has one.
    pub(crate) fn forward_ragged<'c>(
        &self,
        x: &Tensor,
        sequences: impl Iterator<Item = (&'c Span, &'c mut KvCache)>,
        phase: Phase,
        pass: &Pass<'_>,
    ) -> Result<(Tensor, Option<Routed>)> {
        let kernels = Kernels::Fused;
        let normed = self.attention_norm.forward(x, kernels)?;
        let x = (x + self.attention.forward_ragged(&normed, self.layer, sequences)?)?;
        let normed = self.feed_forward_norm.forward(&x, kernels)?;
        match &self.feed_forward {
            FeedForward::Moe { layer, router, shared } => {
                let (choice, weights, logits) = router.choose(&normed, &pass.tokens)?;
                let routes = Routes::new(choice.experts.clone(), weights, phase)?;
                let x = add_experts(&x, &normed, *layer, &routes, shared.as_ref(), pass.bank)?;
                Ok((x, Some(Routed { layer: *layer, choice, logits })))
            }
            FeedForward::Dense(mlp) => Ok(((x + mlp.forward(&normed)?)?, None)),
        }
    }

    /// Runs the layer on whole sequences of one length, `x` `[batch x length, hidden]`, with gradients; also returns what
    /// its router did, if it has one.
    pub(crate) fn forward_dense(
        &self,
        x: &Tensor,
        batch: usize,
        (mask, rotation): (&CausalMask, &Rotation),
        capacity_factor: Option<f64>,
        pass: &Pass<'_>,
    ) -> Result<(Tensor, Option<RouterOutput>)> {
        let kernels = Kernels::Differentiable;
        let normed = self.attention_norm.forward(x, kernels)?;
        let x = (x + self.attention.forward_dense(&normed, batch, mask, rotation)?)?;
        let normed = self.feed_forward_norm.forward(&x, kernels)?;
        match &self.feed_forward {
            FeedForward::Moe { layer, router, shared } => {
                let output = router.choose_differentiably(&normed, &pass.tokens, capacity_factor)?;
                let routes = Routes::new(output.served.clone(), output.weights.clone(), Phase::Prefill)?;
                Ok((add_experts(&x, &normed, *layer, &routes, shared.as_ref(), pass.bank)?, Some(output)))
            }
            FeedForward::Dense(mlp) => Ok(((x + mlp.forward(&normed)?)?, None)),
        }
    }
}

/// Adds to `x` what the experts make of `normed`.
fn add_experts(
    x: &Tensor,
    normed: &Tensor,
    layer: LayerId,
    routes: &Routes,
    shared: Option<&ExpertWeights>,
    bank: &dyn ExpertBank,
) -> Result<Tensor> {
    let x = (x + bank.forward(layer, normed, routes)?)?;
    match shared {
        Some(shared) => Ok((x + shared.forward(normed)?)?),
        None => Ok(x),
    }
}

/// A SwiGLU MLP of the given width, the same arithmetic as an expert's.
fn mlp(config: &OlmoeConfig, width: usize, name: &str, vb: &VarBuilder<'_>) -> Result<ExpertWeights> {
    let params = config.params();
    let init = Init::Randn { mean: 0.0, stdev: params.initializer_range };
    let [gate, up, down] = mlp_names(name);
    let get = |out, inner, name: &str| vb.get_with_hints((out, inner), name, init);
    let hidden = params.hidden_size;
    Ok(ExpertWeights::new(get(width, hidden, &gate)?, get(width, hidden, &up)?, get(hidden, width, &down)?)?)
}
