//! Top-k of biased sigmoids.

use candle_core::Tensor;
use candle_nn::ops;

use crate::Result;
use crate::router::SMALLEST_SUM;
use crate::router::choice::{Choice, TopK, by_rank};
use crate::router::strategy::{Strategy, TokenView};

/// A token takes the experts of its largest sigmoid plus bias; the weights know nothing of the bias.
#[derive(Clone, Debug)]
pub(crate) struct Sigmoid {
    pub(crate) top_k: TopK,
    /// f32 `[experts]`.
    pub(crate) bias: Tensor,
}

impl Strategy for Sigmoid {
    fn choose(&self, logits: &[f32], _: &TokenView<'_>) -> Result<Choice> {
        Ok(choose(self.top_k, logits, &self.bias.to_vec1()?))
    }

    fn scores(&self, logits: &Tensor, _: &TokenView<'_>) -> Result<Tensor> {
        Ok(ops::sigmoid(logits)?)
    }

    /// Each score's share of its token's scores (arXiv 2412.19437, equation 19).
    fn distributions(&self, scores: &Tensor) -> Result<Tensor> {
        Ok(scores.broadcast_div(&(scores.sum_keepdim(1)? + f64::from(SMALLEST_SUM))?)?)
    }
}

pub(crate) fn choose(top_k: TopK, logits: &[f32], bias: &[f32]) -> Choice {
    let TopK { experts, top_k: k, normalise } = top_k;
    let mut choice = Choice::with_room(logits.len() / experts, k);
    let (mut scores, mut ranked) = (Vec::with_capacity(experts), Vec::with_capacity(experts));
    for row in logits.chunks_exact(experts) {
        scores.clear();
        scores.extend(row.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())));
        ranked.clear();
        ranked.extend(scores.iter().zip(bias).map(|(score, bias): (&f32, _)| score + bias).zip(0u16..));
        if k < experts {
            ranked.select_nth_unstable_by(k, by_rank);
            ranked.truncate(k);
        }
        for (value, expert) in &mut ranked {
            *value = scores[usize::from(*expert)];
        }
        ranked.sort_unstable_by(by_rank);
        let sum: f32 = ranked.iter().map(|&(score, _)| score).sum();
        let scale = if normalise { sum + SMALLEST_SUM } else { 1.0 };
        choice.push(ranked.iter().map(|&(score, expert)| (expert, score / scale)));
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bias_decides_who_is_chosen_but_not_the_weights() {
        // Sigmoids: 0.5, 0.75, 0.25, 0.
        let logits = [0.0, 3f32.ln(), -3f32.ln(), -200.0];
        let assert_choice = |normalise, bias: [f32; 4], experts: [u16; 2], weights: [f32; 2]| {
            let choice = choose(TopK { experts: 4, top_k: 2, normalise }, &logits, &bias);
            assert_eq!(choice.experts, experts);
            let close = choice.weights.iter().zip(weights).all(|(found, expected)| (found - expected).abs() < 1e-6);
            assert!(close, "{:?}", choice.weights);
        };
        assert_choice(false, [0.0; 4], [1, 0], [0.75, 0.5]);
        assert_choice(false, [0.0, 0.0, 0.3, 0.0], [1, 2], [0.75, 0.25]);
        assert_choice(true, [0.0, -1.0, 0.0, 0.0], [0, 2], [2.0 / 3.0, 1.0 / 3.0]);
        // Scores that vanish are no division by zero.
        let none = choose(TopK { experts: 2, top_k: 1, normalise: true }, &[-200.0, -300.0], &[0.0; 2]);
        assert_eq!((none.experts, none.weights), (vec![0], vec![0.0]));
    }
}
