//! The definitions, written down as they stand: for tests and benchmarks. No stable interface.

use moe_trace::{LayerId, Sequence};

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
