//! The softmax top-k router.

use candle_core::{D, DType, Tensor};
use candle_nn::{Init, VarBuilder, ops};
use moe_trace::LayerId;

use crate::{ModelError, OlmoeConfig, Result};

/// Chooses experts for tokens: the `top_k` largest of a softmax over all experts.
#[derive(Clone, Debug)]
pub(crate) struct Router {
    /// `[experts, hidden]`.
    weight: Tensor,
    layer: LayerId,
    experts: usize,
    top_k: usize,
    normalise: bool,
}

/// Experts of some tokens, `[tokens x top_k]` each, in rank order: descending weight, equal weights by ascending id.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) experts: Vec<u16>,
    /// As the experts' outputs are weighted: probabilities, or probabilities scaled to sum to 1.
    pub(crate) weights: Vec<f32>,
}

/// What one router computed in a [dense forward pass](crate::Olmoe::forward_dense); gradients flow through the tensors.
#[derive(Clone, Debug)]
pub struct RouterOutput {
    /// Router logits, f32 `[batch x length, experts]`.
    pub logits: Tensor,
    /// Their softmax, f32 `[batch x length, experts]`.
    pub probs: Tensor,
    /// Chosen experts, `[batch x length x top_k]` in rank order.
    pub experts: Vec<u16>,
}

impl Router {
    pub(crate) fn new(config: &OlmoeConfig, layer: LayerId, vb: &VarBuilder<'_>) -> Result<Router> {
        let params = config.params();
        let init = Init::Randn { mean: 0.0, stdev: params.initializer_range };
        Ok(Router {
            weight: vb.get_with_hints((params.num_experts, params.hidden_size), "weight", init)?,
            layer,
            experts: params.num_experts,
            top_k: params.num_experts_per_tok,
            normalise: params.norm_topk_prob,
        })
    }

    /// Logits of tokens `[tokens, hidden]`: f32 `[tokens, experts]`.
    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&self.weight.t()?)?.to_dtype(DType::F32)?)
    }

    /// Chooses experts for tokens `[tokens, hidden]`; also returns the weights as a tensor, `[tokens, top_k]`.
    pub(crate) fn choose(&self, x: &Tensor) -> Result<(Choice, Tensor)> {
        let choice = self.choose_by(&self.logits(x)?)?;
        let shape = (x.dim(0)?, self.top_k);
        let weights = Tensor::from_slice(&choice.weights, shape, x.device())?;
        Ok((choice, weights))
    }

    /// As [`choose`](Self::choose), with weights that gradients flow through.
    pub(crate) fn choose_differentiably(&self, x: &Tensor) -> Result<(RouterOutput, Tensor)> {
        let logits = self.logits(x)?;
        let probs = ops::softmax(&logits, D::Minus1)?;
        let experts = self.choose_by(&logits)?.experts;
        let ids = experts.iter().map(|&expert| u32::from(expert)).collect();
        let ids = Tensor::from_vec(ids, (x.dim(0)?, self.top_k), x.device())?;
        let mut weights = probs.gather(&ids, 1)?;
        if self.normalise {
            weights = weights.broadcast_div(&weights.sum_keepdim(1)?)?;
        }
        Ok((RouterOutput { logits, probs, experts }, weights))
    }

    fn choose_by(&self, logits: &Tensor) -> Result<Choice> {
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        if let Some(index) = logits.iter().position(|logit| !logit.is_finite()) {
            let (token, expert) = (index / self.experts, index % self.experts);
            return Err(ModelError::RouterLogit { layer: self.layer, token, expert, value: logits[index] });
        }
        Ok(top_k(&logits, self.experts, self.top_k, self.normalise))
    }
}

/// Softmax and top-k of finite logits `[tokens x experts]`.
fn top_k(logits: &[f32], experts: usize, k: usize, normalise: bool) -> Choice {
    let slots = logits.len() / experts * k;
    let mut choice = Choice { experts: Vec::with_capacity(slots), weights: Vec::with_capacity(slots) };
    let mut ranked: Vec<(f32, u16)> = Vec::with_capacity(experts);
    for row in logits.chunks_exact(experts) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        ranked.clear();
        ranked.extend(row.iter().map(|logit| (logit - max).exp()).zip(0u16..));
        let total: f32 = ranked.iter().map(|&(weight, _)| weight).sum();
        let by_rank = |a: &(f32, u16), b: &(f32, u16)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if k < experts {
            ranked.select_nth_unstable_by(k, by_rank);
        }
        let chosen = &mut ranked[..k];
        chosen.sort_unstable_by(by_rank);
        let scale = if normalise { chosen.iter().map(|&(weight, _)| weight).sum() } else { total };
        choice.experts.extend(chosen.iter().map(|&(_, expert)| expert));
        choice.weights.extend(chosen.iter().map(|&(weight, _)| weight / scale));
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_probabilities_or_sum_to_one() {
        // exp: 1, 2, 4, 1 of 8.
        let logits = [0.0, 2f32.ln(), 4f32.ln(), 0.0];
        let close = |weights: &[f32], expected: &[f32]| weights.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        let choice = top_k(&logits, 4, 2, false);
        assert_eq!(choice.experts, [2, 1]);
        assert!(close(&choice.weights, &[0.5, 0.25]), "{:?}", choice.weights);
        let choice = top_k(&logits, 4, 3, true);
        assert_eq!(choice.experts, [2, 1, 0]);
        assert!(close(&choice.weights, &[4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0]), "{:?}", choice.weights);
    }

    #[test]
    fn equal_weights_go_to_the_lowest_ids() {
        assert_eq!(top_k(&[0.5; 6], 6, 3, false).experts, [0, 1, 2]);
        assert_eq!(top_k(&[0.0, 1.0, 1.0, 0.0, 1.0, 0.0], 6, 4, false).experts, [1, 2, 4, 0]);
        assert_eq!(top_k(&[1.0, 3.0, 2.0], 3, 3, true).experts, [1, 2, 0]);
    }
}
