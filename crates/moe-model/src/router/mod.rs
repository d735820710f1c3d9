//! The router of an MoE layer.

mod capacity;
mod choice;
mod drawn;
mod expert_choice;
mod kind;
mod reference;
mod sigmoid;
mod softmax;
mod strategy;
#[cfg(test)]
mod twins;

use std::sync::Arc;

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};
use moe_trace::{EMPTY_SLOT, LayerId};

pub(crate) use choice::Choice;
pub use kind::{RouterKind, reference_experts};
pub(crate) use strategy::TokenView;

use crate::linear::Linear;
use crate::{ModelError, OlmoeConfig, Result};
use choice::TopK;
use drawn::{Drawn, DrawnBy};
use expert_choice::ExpertChoice;
use reference::Reference;
use sigmoid::Sigmoid;
use softmax::Softmax;
use strategy::Strategy;

/// Added to a sum of scores that may vanish before it divides them; far below the rounding of any other sum.
const SMALLEST_SUM: f32 = 1e-20;

/// Computes logits and leaves the choice of experts to a strategy.
#[derive(Clone, Debug)]
pub(crate) struct Router {
    /// `[experts, hidden]`; none where experts are drawn.
    gate: Option<Linear>,
    strategy: Arc<dyn Strategy>,
    top_k: TopK,
    layer: LayerId,
}

/// What one router did in a [dense forward pass](crate::Olmoe::forward_dense); gradients flow through the tensors.
#[derive(Clone, Debug)]
pub struct RouterOutput {
    /// Router logits, f32 `[batch x length, experts]`; none where experts are drawn without.
    pub logits: Option<Tensor>,
    /// What the router makes of them before it chooses, as a distribution over experts, f32
    /// `[batch x length, experts]`: a softmax, the reference router's over the experts of the domain; the shares of the
    /// sigmoids; `1 / top_k` where experts are drawn.
    pub probs: Tensor,
    /// Chosen experts, `[batch x length x slots]` in rank order. There are `top_k` slots a token; if experts choose tokens,
    /// as many as the most popular token needs, and [`EMPTY_SLOT`] in those that others leave.
    pub experts: Vec<u16>,
    /// The same with [`EMPTY_SLOT`] for what was dropped for lack of capacity.
    pub served: Vec<u16>,
    /// Weights of the chosen experts, f32 `[batch x length, slots]`; those of empty slots mean nothing.
    pub weights: Tensor,
}

impl Router {
    /// Creates the router from the tensors under `vb`, those of `mlp.gate`.
    pub(crate) fn new(config: &OlmoeConfig, layer: LayerId, vb: &VarBuilder<'_>) -> Result<Router> {
        let params = config.params();
        let (experts, kind) = (params.num_experts, params.router);
        let init = Init::Randn { mean: 0.0, stdev: params.initializer_range };
        let gate =
            || -> Result<Linear> { Ok(Linear::new(vb.get_with_hints((experts, params.hidden_size), "weight", init)?)) };
        let top_k = TopK { experts, top_k: params.num_experts_per_tok, normalise: params.norm_topk_prob };
        let drawn = |by| Drawn { by, seed: params.router_seed, layer, top_k };
        let strategy: Arc<dyn Strategy> = match kind {
            RouterKind::Softmax | RouterKind::Random => Arc::new(Softmax(top_k)),
            RouterKind::Sigmoid => {
                let bias = vb.get_with_hints_dtype(experts, "e_score_correction_bias", Init::Const(0.0), DType::F32)?;
                Arc::new(Sigmoid { top_k, bias })
            }
            RouterKind::ExpertChoice => Arc::new(ExpertChoice(top_k)),
            RouterKind::Hash => Arc::new(drawn(DrawnBy::TokenId)),
            RouterKind::Reference => Arc::new(Reference::new(top_k, params.num_domains)),
            RouterKind::Position => Arc::new(drawn(DrawnBy::Position)),
        };
        Ok(Router { gate: kind.has_logits().then(gate).transpose()?, strategy, top_k, layer })
    }

    /// Logits of tokens `[tokens, hidden]`, f32 `[tokens, experts]`, and their values; these are empty without a gate.
    fn logits(&self, x: &Tensor) -> Result<(Option<Tensor>, Vec<f32>)> {
        let Some(gate) = &self.gate else { return Ok((None, Vec::new())) };
        let logits = gate.forward(x)?.to_dtype(DType::F32)?;
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        if let Some(index) = values.iter().position(|logit| !logit.is_finite()) {
            let (token, expert) = (index / self.top_k.experts, index % self.top_k.experts);
            return Err(ModelError::RouterLogit { layer: self.layer, token, expert, value: values[index] });
        }
        Ok((Some(logits), values))
    }

    /// Chooses experts for tokens `x` `[tokens, hidden]`; also returns the weights as a tensor, `[tokens, top_k]`, and the
    /// logits, `[tokens x experts]`, empty without a gate.
    pub(crate) fn choose(&self, x: &Tensor, tokens: &TokenView<'_>) -> Result<(Choice, Tensor, Vec<f32>)> {
        let (_, logits) = self.logits(x)?;
        let choice = self.strategy.choose(&logits, tokens)?;
        let weights = Tensor::from_slice(&choice.weights, (x.dim(0)?, choice.slots), x.device())?;
        Ok((choice, weights, logits))
    }

    /// Chooses experts for a micro-batch of tokens, with weights that gradients flow through; an expert serves no more
    /// tokens than `capacity_factor` times an even load.
    pub(crate) fn choose_differentiably(
        &self,
        x: &Tensor,
        tokens: &TokenView<'_>,
        capacity_factor: Option<f64>,
    ) -> Result<RouterOutput> {
        let (logits, values) = self.logits(x)?;
        let count = x.dim(0)?;
        let zeros = || Tensor::zeros((count, self.top_k.experts), DType::F32, x.device());
        let scored = logits.clone().map_or_else(zeros, Ok)?;
        let scores = self.strategy.scores(&scored, tokens)?.to_device(x.device())?;
        let Choice { experts, slots, .. } = self.strategy.choose_in_batch(&values, tokens)?;
        let weights = self.weights(&scores, &experts, (count, slots))?;
        let mut served = experts.clone();
        if let Some(factor) = capacity_factor {
            let capacity = capacity::capacity(factor, experts.len(), self.top_k.experts);
            capacity::drop_beyond(&mut served, slots, self.top_k.experts, capacity);
        }
        Ok(RouterOutput { probs: self.strategy.distributions(&scores)?, logits, experts, served, weights })
    }

    /// The scores of the chosen experts, normalised if need be; `shape` is `(tokens, slots)`.
    fn weights(&self, scores: &Tensor, experts: &[u16], shape: (usize, usize)) -> Result<Tensor> {
        let ids = experts.iter().map(|&expert| if expert == EMPTY_SLOT { 0 } else { u32::from(expert) });
        let ids = Tensor::from_vec(ids.collect(), shape, scores.device())?;
        let mut weights = scores.gather(&ids, 1)?;
        if !self.top_k.normalise {
            return Ok(weights);
        }
        if experts.contains(&EMPTY_SLOT) {
            let used = experts.iter().map(|&expert| if expert == EMPTY_SLOT { 0f32 } else { 1.0 });
            weights = (weights * Tensor::from_vec(used.collect::<Vec<_>>(), shape, scores.device())?)?;
        }
        Ok(weights.broadcast_div(&(weights.sum_keepdim(1)? + f64::from(SMALLEST_SUM))?)?)
    }
}
