//! Experts that choose tokens.

use candle_core::{D, Tensor};
use candle_nn::ops;

use crate::Result;
use crate::router::choice::{Choice, TopK, by_rank};
use crate::router::strategy::{Strategy, TokenView};

/// In a batch every expert takes the tokens that have the largest probabilities for it; alone, a token takes its experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertChoice(pub(crate) TopK);

impl Strategy for ExpertChoice {
    fn choose(&self, logits: &[f32], _: &TokenView<'_>) -> Result<Choice> {
        Ok(self.0.of_softmax(logits))
    }

    fn choose_in_batch(&self, logits: &[f32], _: &TokenView<'_>) -> Result<Choice> {
        Ok(take_tokens(self.0, logits))
    }

    fn scores(&self, logits: &Tensor, _: &TokenView<'_>) -> Result<Tensor> {
        Ok(ops::softmax(logits, D::Minus1)?)
    }
}

/// Lets each expert take its share of `tokens * top_k` slots, at least one, of equal probabilities the first token.
pub(crate) fn take_tokens(top_k: TopK, logits: &[f32]) -> Choice {
    let TopK { experts, top_k: k, normalise } = top_k;
    let tokens = logits.len() / experts;
    let share = ((tokens * k + experts / 2) / experts).clamp(1, tokens.max(1));
    let all = TopK { top_k: experts, normalise: false, ..top_k };
    let mut ranked = Vec::with_capacity(experts);
    // Probabilities by expert, with the token.
    let mut columns = vec![Vec::with_capacity(tokens); experts];
    for (token, row) in logits.chunks_exact(experts).enumerate() {
        all.rank_softmax(row, &mut ranked);
        ranked.iter().for_each(|&(probability, expert)| columns[usize::from(expert)].push((probability, token)));
    }
    let mut taken = vec![Vec::new(); tokens];
    for (expert, column) in (0u16..).zip(&mut columns) {
        if share < tokens {
            column.select_nth_unstable_by(share, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        }
        column.iter().take(share).for_each(|&(probability, token)| taken[token].push((probability, expert)));
    }
    let slots = taken.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let mut choice = Choice::with_room(tokens, slots);
    for experts in &mut taken {
        experts.sort_unstable_by(by_rank);
        let sum: f32 = experts.iter().map(|&(probability, _)| probability).sum();
        let scale = if normalise && !experts.is_empty() { sum } else { 1.0 };
        choice.push(experts.iter().map(|&(probability, expert)| (expert, probability / scale)));
    }
    choice
}

#[cfg(test)]
mod tests {
    use moe_trace::EMPTY_SLOT;

    use super::*;

    /// Three tokens, two experts, one slot a token: each expert takes `round(3 / 2) = 2` tokens.
    #[test]
    fn experts_take_the_tokens_that_want_them_most() {
        // Probabilities of expert 0: 1/4, 1/2, 3/4.
        let logits = [0.0, 3f32.ln(), 0.0, 0.0, 3f32.ln(), 0.0];
        let choice = take_tokens(TopK { experts: 2, top_k: 1, normalise: false }, &logits);
        // Expert 0 takes tokens 2 and 1, expert 1 tokens 0 and 1.
        assert_eq!((choice.slots, choice.experts), (2, vec![1, EMPTY_SLOT, 0, 1, 0, EMPTY_SLOT]));
        let weights = choice.weights.iter().zip([0.75, 0.0, 0.5, 0.5, 0.75, 0.0]);
        assert!(weights.clone().all(|(found, expected)| (found - expected).abs() < 1e-6), "{weights:?}");
    }
}
