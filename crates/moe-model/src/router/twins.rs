//! The ways to choose beside their definitions, for any logits.

use moe_trace::{DomainId, EMPTY_SLOT};
use proptest::prelude::*;

use crate::router::capacity::drop_beyond;
use crate::router::choice::{Choice, TopK};
use crate::router::expert_choice::take_tokens;
use crate::router::kind::reference_experts;
use crate::router::reference::Reference;
use crate::router::sigmoid;
use crate::router::strategy::{Strategy as _, TokenView};

/// Experts, top-k, whether to normalise, domains that have enough experts, and logits of which many are equal.
fn routing() -> impl Strategy<Value = (TopK, usize, Vec<f32>)> {
    (1usize..9, 1usize..12, any::<bool>()).prop_flat_map(|(experts, tokens, normalise)| {
        let logit = (-6i8..7).prop_map(|halves| f32::from(halves) * 0.5);
        (1..=experts, prop::collection::vec(logit, experts * tokens)).prop_flat_map(move |(top_k, logits)| {
            (Just(TopK { experts, top_k, normalise }), 1..=experts / top_k, Just(logits))
        })
    })
}

/// Rounded as the router rounds it, so that equal probabilities are equal.
fn softmax(row: &[f32], allowed: impl Fn(usize) -> bool) -> Vec<f32> {
    let max =
        (0..row.len()).filter(|&expert| allowed(expert)).map(|expert| row[expert]).fold(f32::NEG_INFINITY, f32::max);
    let exp = |expert: usize| if allowed(expert) { (row[expert] - max).exp() } else { 0.0 };
    let sum: f32 = (0..row.len()).map(exp).sum();
    (0..row.len()).map(|expert| exp(expert) / sum).collect()
}

/// Takes the largest value again and again, of equal values the lowest id; then sorts by weight.
fn largest(values: &[f32], weights: &[f32], allowed: impl Fn(usize) -> bool, count: usize) -> Vec<(usize, f32)> {
    let mut chosen: Vec<(usize, f32)> = Vec::new();
    for _ in 0..count {
        let left = (0..values.len()).filter(|&id| allowed(id) && chosen.iter().all(|&(other, _)| other != id));
        let best = left.reduce(|best, id| if values[id] > values[best] { id } else { best }).unwrap();
        chosen.push((best, weights[best]));
    }
    by_weight(chosen)
}

fn by_weight(mut chosen: Vec<(usize, f32)>) -> Vec<(usize, f32)> {
    chosen.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    chosen
}

/// Asserts that a choice has the expected experts and weights, token by token.
fn assert_chosen(choice: &Choice, expected: &[Vec<(usize, f32)>], normalise: bool) {
    assert_eq!(choice.experts.len(), expected.len() * choice.slots);
    let slots = choice.experts.chunks(choice.slots).zip(choice.weights.chunks(choice.slots));
    for ((experts, weights), expected) in slots.zip(expected) {
        let sum: f32 = if normalise { expected.iter().map(|&(_, weight)| weight).sum() } else { 1.0 };
        for (slot, (&expert, &weight)) in experts.iter().zip(weights).enumerate() {
            match expected.get(slot) {
                Some(&(id, expected)) => {
                    assert_eq!(usize::from(expert), id);
                    assert!((weight - expected / sum).abs() < 1e-5, "{weight} {expected} {sum}");
                }
                None => assert_eq!((expert, weight), (EMPTY_SLOT, 0.0)),
            }
        }
    }
}

proptest! {
    #[test]
    fn softmax_takes_the_largest((top_k, _, logits) in routing()) {
        let rows = logits.chunks(top_k.experts);
        let expected: Vec<_> = rows.map(|row| largest(row, &softmax(row, |_| true), |_| true, top_k.top_k)).collect();
        assert_chosen(&top_k.of_softmax(&logits), &expected, top_k.normalise);
    }

    #[test]
    fn sigmoid_takes_the_largest_biased(
        (top_k, _, logits) in routing(),
        bias in prop::collection::vec(-1f32..1.0, 8),
    ) {
        let bias = &bias[..top_k.experts];
        let of_row = |row: &[f32]| {
            let scores: Vec<f32> = row.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
            let biased: Vec<f32> = scores.iter().zip(bias).map(|(score, bias)| score + bias).collect();
            largest(&biased, &scores, |_| true, top_k.top_k)
        };
        let expected: Vec<_> = logits.chunks(top_k.experts).map(of_row).collect();
        assert_chosen(&sigmoid::choose(top_k, &logits, bias), &expected, top_k.normalise);
    }

    #[test]
    fn the_reference_takes_the_largest_of_the_domain((top_k, domains, logits) in routing()) {
        let tokens = logits.len() / top_k.experts;
        let labels: Vec<DomainId> = (0u16..).map(|token| DomainId(token % u16::try_from(domains).unwrap())).take(tokens).collect();
        let experts = reference_experts(domains, u16::try_from(top_k.experts).unwrap());
        let of_token = |(row, label): (&[f32], &DomainId)| {
            let allowed = |id: usize| experts[label.index()].iter().any(|expert| expert.index() == id);
            largest(row, &softmax(row, allowed), allowed, top_k.top_k)
        };
        let expected: Vec<_> = logits.chunks(top_k.experts).zip(&labels).map(of_token).collect();
        let view = TokenView { ids: &[], positions: &[], domains: &labels };
        let choice = Reference::new(top_k, domains).choose(&logits, &view).unwrap();
        assert_chosen(&choice, &expected, top_k.normalise);
    }

    #[test]
    fn experts_take_the_tokens_of_the_largest_probabilities((top_k, _, logits) in routing()) {
        let tokens = logits.len() / top_k.experts;
        let rows: Vec<Vec<f32>> = logits.chunks(top_k.experts).map(|row| softmax(row, |_| true)).collect();
        let even = (tokens * top_k.top_k) as f64 / top_k.experts as f64;
        let mut expected = vec![Vec::new(); tokens];
        for expert in 0..top_k.experts {
            let column: Vec<f32> = rows.iter().map(|row| row[expert]).collect();
            let share = (1..tokens).find(|&share| share as f64 + 0.5 > even).unwrap_or(tokens);
            for (token, probability) in largest(&column, &column, |_| true, share) {
                expected[token].push((expert, probability));
            }
        }
        let expected: Vec<_> = expected.into_iter().map(by_weight).collect();
        let choice = take_tokens(top_k, &logits);
        prop_assert_eq!(choice.slots, expected.iter().map(Vec::len).max().unwrap().max(1));
        assert_chosen(&choice, &expected, top_k.normalise);
    }

    /// A slot stays if fewer than `capacity` better ones want the same expert.
    #[test]
    fn dropping_spares_first_choices_and_early_tokens(
        (slots, wanted) in (1usize..4).prop_flat_map(|slots| {
            let slot = prop_oneof![4 => 0u16..5, 1 => Just(EMPTY_SLOT)];
            (Just(slots), (1usize..9).prop_flat_map(move |tokens| prop::collection::vec(slot.clone(), tokens * slots)))
        }),
        capacity in 0usize..6,
    ) {
        let mut served = wanted.clone();
        drop_beyond(&mut served, slots, 5, capacity);
        let order = |place: usize| (place % slots, place / slots);
        for (place, (&wanted_here, &served)) in wanted.iter().zip(&served).enumerate() {
            let better = wanted.iter().enumerate().filter(|&(other, &e)| e == wanted_here && order(other) < order(place));
            let stays = wanted_here != EMPTY_SLOT && better.count() < capacity;
            prop_assert_eq!(served, if stays { wanted_here } else { EMPTY_SLOT });
        }
    }
}
