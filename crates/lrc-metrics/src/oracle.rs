//! The definitions, written down as they stand, and seeded traces to try them on: for tests and benchmarks. No stable
//! interface.

use moe_trace::{Geometry, LayerId, Phase, Sequence, SequenceBuf};

use crate::random::SplitMix;

/// Histogram of window counts of one expert by looking at every token of every window, `[window + 1]`.
pub fn window_counts(sequence: &Sequence<'_>, layer: LayerId, expert: u16, window: usize) -> Vec<u64> {
    let mut counts = vec![0; window + 1];
    let uses = |token| sequence.experts(token, layer).any(|used| used.0 == expert);
    for start in 0..(sequence.len() + 1).saturating_sub(window) {
        counts[(start..start + window).filter(|&token| uses(token)).count()] += 1;
    }
    counts
}

/// Best F1 over all thresholds, `(srp, threshold, rho)`, each F1 from scratch.
pub fn best_threshold(counts: &[u64]) -> (f64, usize, f64) {
    let window = counts.len() - 1;
    let sum = |from: usize| -> f64 { (from..=window).map(|uses| uses as f64 * counts[uses] as f64).sum() };
    let selected = |from: usize| -> f64 { (from..=window).map(|uses| window as f64 * counts[uses] as f64).sum() };
    if sum(0) == 0.0 {
        return (0.0, 0, 0.0);
    }
    let mut best = (0.0, 0, 0.0);
    for threshold in 0..=window {
        let f1 = 2.0 * sum(threshold) / (selected(threshold) + sum(0));
        // Equal fractions may differ in the last bit, different ones differ by far more in traces of test size.
        if f1 > best.0 + 1e-13 {
            best = (f1, threshold, selected(threshold) / sum(0));
        }
    }
    best
}

/// A seeded trace with the traits of real routing: Zipf popularity of experts, a topic for each sequence, and noise that
/// is sticky from token to token.
///
/// The score of expert `e` is `ln popularity(e) + topic(e) + z(e)` with popularity `rank^-0.6`, `topic ~ N(0, 0.7)` and
/// `z` an AR(1) process of unit variance and correlation 0.8; a token uses the `top_k` experts of highest score, in that
/// order.
pub fn synthetic(geometry: &Geometry, sequences: usize, tokens: usize, seed: u64) -> Vec<SequenceBuf> {
    let (experts, correlation) = (geometry.experts(), 0.8f64);
    let mut random = SplitMix::new(seed);
    let columns = geometry.layers() * experts;
    // A random order of the experts of each layer gives their popularity ranks.
    let mut popularity = vec![0.0; columns];
    for layer in popularity.chunks_mut(experts) {
        let mut order: Vec<(u64, usize)> = (0..experts).map(|expert| (random.next(), expert)).collect();
        order.sort_unstable();
        for (rank, (_, expert)) in order.into_iter().enumerate() {
            layer[expert] = -0.6 * ((rank + 1) as f64).ln();
        }
    }
    let mut one = || {
        let topic: Vec<f64> = popularity.iter().map(|score| score + 0.7 * random.normal()).collect();
        let mut noise: Vec<f64> = (0..columns).map(|_| random.normal()).collect();
        let mut ids = Vec::with_capacity(tokens * geometry.layers() * geometry.top_k());
        for _ in 0..tokens {
            for (topic, noise) in topic.chunks(experts).zip(noise.chunks(experts)) {
                let mut ranked: Vec<u16> = geometry.expert_ids().map(|expert| expert.0).collect();
                let score = |expert: u16| topic[usize::from(expert)] + noise[usize::from(expert)];
                ranked.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
                ids.extend(&ranked[..geometry.top_k()]);
            }
            for z in &mut noise {
                *z = correlation * *z + (1.0 - correlation * correlation).sqrt() * random.normal();
            }
        }
        SequenceBuf::from_experts(geometry, ids, Phase::Decode).expect("whole tokens")
    };
    (0..sequences).map(|_| one()).collect()
}
