//! One decoder layer.

use candle_core::Tensor;
use candle_nn::VarBuilder;
use moe_offload::{ExpertBank, Routes};
use moe_trace::{LayerId, Phase};

use crate::attention::{Attention, Span};
use crate::kernels::{CausalMask, Kernels};
use crate::kv_cache::KvCache;
use crate::norm::RmsNorm;
use crate::rope::Rope;
use crate::router::{Choice, Router, RouterOutput};
use crate::{OlmoeConfig, Result};

/// Attention and an MoE block, each behind a norm and around a residual connection.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    layer: LayerId,
    attention_norm: RmsNorm,
    attention: Attention,
    moe_norm: RmsNorm,
    router: Router,
}

impl Block {
    pub(crate) fn new(config: &OlmoeConfig, layer: LayerId, vb: &VarBuilder<'_>) -> Result<Block> {
        let params = config.params();
        let norm = |name: &str| RmsNorm::new(params.hidden_size, params.rms_norm_eps, &vb.pp(name));
        Ok(Block {
            layer,
            attention_norm: norm("input_layernorm")?,
            attention: Attention::new(config, &vb.pp("self_attn"))?,
            moe_norm: norm("post_attention_layernorm")?,
            router: Router::new(config, layer, &vb.pp("mlp.gate"))?,
        })
    }

    /// The layer's id.
    pub(crate) fn layer(&self) -> LayerId {
        self.layer
    }

    /// The layer on a ragged batch, `x` `[tokens, hidden]`; `routed` sees the router's choice before the experts run.
    pub(crate) fn forward_ragged<'c>(
        &self,
        x: &Tensor,
        sequences: impl Iterator<Item = (&'c Span, &'c mut KvCache)>,
        rope: &Rope,
        phase: Phase,
        bank: &dyn ExpertBank,
        routed: impl FnOnce(&Choice),
    ) -> Result<Tensor> {
        let kernels = Kernels::Fused;
        let normed = self.attention_norm.forward(x, kernels)?;
        let x = (x + self.attention.forward_ragged(&normed, self.layer.index(), sequences, rope)?)?;
        let normed = self.moe_norm.forward(&x, kernels)?;
        let (choice, weights) = self.router.choose(&normed)?;
        routed(&choice);
        let routes = Routes::new(choice.experts, weights, phase)?;
        Ok((x + bank.forward(self.layer, &normed, &routes)?)?)
    }

    /// The layer on whole sequences of one length, `x` `[batch x length, hidden]`, with gradients.
    pub(crate) fn forward_dense(
        &self,
        x: &Tensor,
        batch: usize,
        mask: &CausalMask,
        rope: &Rope,
        bank: &dyn ExpertBank,
    ) -> Result<(Tensor, RouterOutput)> {
        let kernels = Kernels::Differentiable;
        let normed = self.attention_norm.forward(x, kernels)?;
        let x = (x + self.attention.forward_dense(&normed, batch, mask, rope)?)?;
        let normed = self.moe_norm.forward(&x, kernels)?;
        let (output, weights) = self.router.choose_differentiably(&normed)?;
        let routes = Routes::new(output.experts.clone(), weights, Phase::Prefill)?;
        Ok(((x + bank.forward(self.layer, &normed, &routes)?)?, output))
    }
}
