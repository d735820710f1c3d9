//! Load by domain, vocabulary, co-activation and saturation against their definitions.

use std::collections::HashMap;

use lrc_metrics::{
    ByDomain, Coactivation, ExpertVocabulary, LoadBalance, Saturation, TokenShare, Vocabulary, VocabularyToken,
    accumulate,
};
use moe_trace::{EMPTY_SLOT, Geometry, LayerId, MemoryTrace, RoutingSource, Sequence};
use proptest::prelude::*;

use crate::traces::{DOMAINS, every_fold_agrees, memory, sequence, trace};

/// Long sequences of few token ids, so that tokens are seen often enough.
fn long_trace() -> impl Strategy<Value = MemoryTrace> {
    let geometry = Geometry::decoder(2, 4, 2).unwrap();
    proptest::collection::vec(sequence(&geometry, 40..80), 1..4).prop_map(move |sequences| memory(&geometry, sequences))
}

fn layers(trace: &MemoryTrace) -> Vec<LayerId> {
    trace.geometry().layer_ids().collect()
}

fn sequences(trace: &MemoryTrace) -> impl Iterator<Item = Sequence<'_>> {
    (0..trace.len()).map(|index| trace.sequence(index).unwrap())
}

/// The expert's tokens, found by going over the whole trace for each token.
fn naive_vocabulary(trace: &MemoryTrace, layer: LayerId, expert: usize, offset: usize) -> ExpertVocabulary {
    let mut shares = Vec::new();
    for token in 0..crate::traces::TOKENS {
        let mut counts: HashMap<usize, u64> = HashMap::new();
        for sequence in sequences(trace) {
            for at in 0..sequence.len() {
                let counted = sequence.token_ids().unwrap().get(at + offset) == Some(&token);
                if let (true, Some(first)) = (counted, sequence.experts(at, layer).next()) {
                    *counts.entry(first.index()).or_default() += 1;
                }
            }
        }
        let seen: u64 = counts.values().sum();
        let most = counts.values().copied().max().unwrap_or(0);
        let owner = (0..trace.geometry().experts()).find(|expert| counts.get(expert) == Some(&most));
        if seen >= 20 && owner == Some(expert) {
            shares.push(TokenShare { token, share: most as f64 / seen as f64, seen });
        }
    }
    let mean = shares.iter().map(|token| token.share).sum::<f64>() / shares.len() as f64;
    shares.sort_by(|a, b| b.share.partial_cmp(&a.share).unwrap().then(b.seen.cmp(&a.seen)));
    let tokens = shares.len();
    ExpertVocabulary { specialization: (tokens > 0).then_some(mean), tokens, top_tokens: shares }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vocabulary_equals_its_definition(trace in long_trace()) {
        for (token, offset) in [(VocabularyToken::Input, 0), (VocabularyToken::Next, 1)] {
            let empty = Vocabulary::new(trace.geometry(), &layers(&trace), token).unwrap();
            every_fold_agrees(&trace, &empty, Vocabulary::finish);
            let found = accumulate(&trace, &empty, &|_| {}).unwrap().finish();
            for layer in layers(&trace) {
                for (expert, found) in found[layer.index()].iter().enumerate() {
                    let expected = naive_vocabulary(&trace, layer, expert, offset);
                    prop_assert_eq!(&found.top_tokens, &expected.top_tokens);
                    prop_assert_eq!(found.tokens, expected.tokens);
                    let difference = found.specialization.zip(expected.specialization).map(|(a, b)| (a - b).abs());
                    prop_assert!(difference.unwrap_or(0.0) < 1e-12);
                    prop_assert_eq!(found.specialization.is_some(), expected.specialization.is_some());
                }
            }
        }
    }

    /// Specialization of every expert from the activation rates of each domain's own trace.
    #[test]
    fn domain_load_is_the_load_of_each_domain(trace in trace()) {
        let empty = ByDomain::new(&LoadBalance::new(trace.geometry()), DOMAINS);
        every_fold_agrees(&trace, &empty, |load| load.finish().unwrap());
        let load = accumulate(&trace, &empty, &|_| {}).unwrap().finish().unwrap();
        for layer in layers(&trace) {
            for expert in trace.geometry().expert_ids() {
                let mut rates = Vec::new();
                for domain in 0..DOMAINS {
                    let of_domain = || sequences(&trace).filter(|sequence| {
                        sequence.domain().is_some_and(|of_sequence| of_sequence.index() == domain)
                    });
                    let tokens: usize = of_domain().map(|sequence| sequence.len()).sum();
                    let uses = of_domain().flat_map(|sequence| {
                        (0..sequence.len()).filter(move |&at| sequence.experts(at, layer).any(|used| used == expert))
                    });
                    let rate = uses.count() as f64 / tokens.max(1) as f64;
                    prop_assert_eq!(load.domains[domain][layer.index()].activation_rates[expert.index()], rate);
                    if rate > 0.0 {
                        rates.push(rate);
                    }
                }
                let found = load.specialization()[layer.index()][expert.index()];
                let n = rates.len() as f64;
                let (sum, squares) = rates.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
                let variance = (squares - sum * sum / n).max(0.0) / (n - 1.0);
                prop_assert_eq!(found.is_some(), rates.len() >= 2);
                prop_assert!(found.is_none_or(|found| (found - variance.sqrt() / (sum / n)).abs() < 1e-6));
            }
        }
    }

    #[test]
    fn coactivation_equals_its_definition(trace in trace()) {
        let empty = Coactivation::new(trace.geometry(), &layers(&trace)).unwrap();
        every_fold_agrees(&trace, &empty, Coactivation::finish);
        let found = accumulate(&trace, &empty, &|_| {}).unwrap().finish();
        for (layer, matrix) in layers(&trace).into_iter().zip(found) {
            for ((i, j), &share) in matrix.indexed_iter() {
                let tokens_with = |experts: &[usize]| -> usize {
                    let uses = |sequence: &Sequence<'_>, at, expert| {
                        sequence.experts(at, layer).any(|used| used.index() == expert)
                    };
                    let of_sequence = |sequence: Sequence<'_>| {
                        (0..sequence.len()).filter(|&at| experts.iter().all(|&e| uses(&sequence, at, e))).count()
                    };
                    sequences(&trace).map(of_sequence).sum()
                };
                prop_assert_eq!(share, tokens_with(&[i, j]) as f64 / tokens_with(&[i]).max(1) as f64);
            }
        }
    }

    /// A later trace in which some slots were emptied and others changed.
    #[test]
    fn saturation_equals_its_definition(trace in trace(), shift in 0u16..3) {
        let mut later = trace.sequences().to_vec();
        let experts = u16::try_from(trace.geometry().experts()).unwrap();
        for id in later.iter_mut().flat_map(|sequence| &mut sequence.experts).filter(|id| **id != EMPTY_SLOT) {
            *id = (*id + shift) % experts;
        }
        let later = memory(trace.geometry(), later);
        let found = Saturation::between(&trace, &later).unwrap().finish();
        for layer in layers(&trace) {
            let (mut kept, mut chosen) = (0, 0);
            for (before, after) in sequences(&trace).zip(sequences(&later)) {
                for at in 0..after.len() {
                    let before: Vec<_> = before.experts(at, layer).collect();
                    kept += after.experts(at, layer).filter(|expert| before.contains(expert)).count();
                    chosen += after.experts(at, layer).count();
                }
            }
            prop_assert_eq!(found[layer.index()], kept as f64 / chosen.max(1) as f64);
        }
    }
}
