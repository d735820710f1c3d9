//! Experts chosen for tokens, in plain numbers.

use moe_trace::EMPTY_SLOT;

/// How many experts there are to choose from, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TopK {
    pub(crate) experts: usize,
    pub(crate) top_k: usize,
    /// Whether the weights of a token's experts are scaled to sum to 1.
    pub(crate) normalise: bool,
}

/// Experts of some tokens, `[tokens x slots]` each, in rank order: descending weight, equal weights by ascending id,
/// empty slots last.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) experts: Vec<u16>,
    /// As the experts' outputs are weighted; 0 in an empty slot.
    pub(crate) weights: Vec<f32>,
    /// Slots a token.
    pub(crate) slots: usize,
}

impl Choice {
    /// Places for `tokens` tokens of `slots` slots.
    pub(crate) fn with_room(tokens: usize, slots: usize) -> Choice {
        let room = tokens * slots;
        Choice { experts: Vec::with_capacity(room), weights: Vec::with_capacity(room), slots }
    }

    /// Adds a token; what is missing to its slots stays empty.
    pub(crate) fn push(&mut self, token: impl ExactSizeIterator<Item = (u16, f32)>) {
        let empty = self.slots - token.len();
        for (expert, weight) in token.chain(std::iter::repeat_n((EMPTY_SLOT, 0.0), empty)) {
            self.experts.push(expert);
            self.weights.push(weight);
        }
    }
}

/// A rank order: descending value, equal values by ascending id.
pub(crate) fn by_rank(a: &(f32, u16), b: &(f32, u16)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

impl TopK {
    /// Softmax and top-k of finite logits `[tokens x experts]`.
    pub(crate) fn of_softmax(self, logits: &[f32]) -> Choice {
        let mut choice = Choice::with_room(logits.len() / self.experts, self.top_k);
        let mut ranked = Vec::with_capacity(self.experts);
        for row in logits.chunks_exact(self.experts) {
            self.rank_softmax(row, &mut ranked);
            choice.push(ranked.iter().map(|&(weight, expert)| (expert, weight)));
        }
        choice
    }

    /// The weights and ids of a token's experts, ids counted along `row`.
    pub(crate) fn rank_softmax(self, row: &[f32], ranked: &mut Vec<(f32, u16)>) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        ranked.clear();
        ranked.extend(row.iter().map(|logit| (logit - max).exp()).zip(0u16..));
        let total: f32 = ranked.iter().map(|&(weight, _)| weight).sum();
        if self.top_k < row.len() {
            ranked.select_nth_unstable_by(self.top_k, by_rank);
            ranked.truncate(self.top_k);
        }
        ranked.sort_unstable_by(by_rank);
        let scale = if self.normalise { ranked.iter().map(|&(weight, _)| weight).sum() } else { total };
        ranked.iter_mut().for_each(|(weight, _)| *weight /= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top_k(logits: &[f32], experts: usize, top_k: usize, normalise: bool) -> Choice {
        TopK { experts, top_k, normalise }.of_softmax(logits)
    }

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

    #[test]
    fn slots_without_an_expert_are_empty_and_last() {
        let mut choice = Choice::with_room(2, 3);
        choice.push([(4, 0.5)].into_iter());
        choice.push([].into_iter());
        assert_eq!(choice.experts, [4, EMPTY_SLOT, EMPTY_SLOT, EMPTY_SLOT, EMPTY_SLOT, EMPTY_SLOT]);
        assert_eq!(choice.weights, [0.5, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
