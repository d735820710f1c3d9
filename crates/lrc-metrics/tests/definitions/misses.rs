//! Causes of misses and the static best set against their definitions.

use expert_cache::curve::{ColdStart, CurvePolicy};
use lrc_metrics::{MetricsOptions, TraceMetrics, accumulate, static_curve};
use moe_trace::{ExpertSet, LayerId, MemoryTrace, RoutingSource};
use proptest::prelude::*;

use crate::traces::trace;

/// Accesses of a layer, those by experts of a set, and first touches within a sequence.
fn counts(trace: &MemoryTrace, layer: LayerId, set: &ExpertSet) -> (usize, usize) {
    let sequences = (0..trace.len()).map(|index| trace.sequence(index).unwrap());
    let (mut all, mut served) = (0, 0);
    for sequence in sequences {
        for expert in (0..sequence.len()).flat_map(|token| sequence.experts(token, layer)) {
            all += 1;
            served += usize::from(set.contains(expert.index()));
        }
    }
    (all, served)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// The best of all sets of each size, by trying them.
    #[test]
    fn the_static_curve_is_the_best_of_all_sets(trace in trace()) {
        let options = MetricsOptions { windows: vec![], ..MetricsOptions::default() };
        let metrics = TraceMetrics::new(trace.geometry(), &options).unwrap();
        let report = accumulate(&trace, &metrics, &|_| {}).unwrap().finish().unwrap();
        let experts = trace.geometry().experts();
        for (layer, report) in trace.geometry().layer_ids().zip(&report.layers) {
            let curve = static_curve(&report.load.activation_rates);
            let mut best = vec![0.0f64; experts];
            for bits in 1usize..1 << experts {
                let set = ExpertSet::from_members(experts, (0..experts).filter(|expert| bits >> expert & 1 == 1));
                let (all, served) = counts(&trace, layer, &set);
                let best = &mut best[set.len() - 1];
                *best = best.max(served as f64 / all.max(1) as f64);
            }
            prop_assert!(curve.iter().zip(&best).all(|(a, b)| (a - b).abs() < 1e-12), "{curve:?} {best:?}");
        }
    }

    /// What is compulsory is the first touches, sequence by sequence; no policy misses less than with bypass.
    #[test]
    fn misses_add_up(trace in trace(), miss in any::<bool>()) {
        let cold_start = if miss { ColdStart::Miss } else { ColdStart::Free };
        let options = MetricsOptions { windows: vec![], pool: true, cold_start, ..MetricsOptions::default() };
        let metrics = TraceMetrics::new(trace.geometry(), &options).unwrap();
        let report = accumulate(&trace, &metrics, &|_| {}).unwrap().finish().unwrap();
        for (layer, report) in trace.geometry().layer_ids().zip(&report.layers) {
            let (mut first, mut sequences) = (0.0, 0.0f64);
            for index in 0..trace.len() {
                let sequence = trace.sequence(index).unwrap();
                let used: Vec<_> = (0..sequence.len()).flat_map(|token| sequence.experts(token, layer)).collect();
                let distinct: std::collections::HashSet<_> = used.iter().collect();
                if !used.is_empty() {
                    first += distinct.len() as f64 / used.len() as f64;
                    sequences += 1.0;
                }
            }
            let compulsory = if sequences == 0.0 { 1.0 } else if miss { first / sequences } else { 0.0 };
            for (slots, cause) in report.misses(CurvePolicy::Lfu).unwrap().into_iter().enumerate() {
                let misses = 1.0 - report.curves[&CurvePolicy::Lfu][slots];
                prop_assert!((cause.compulsory + cause.capacity + cause.regret - misses).abs() < 1e-12);
                prop_assert!((cause.compulsory - compulsory).abs() < 1e-12);
                prop_assert!(cause.capacity >= 0.0 && cause.forced_loads >= 0.0);
                prop_assert!((cause.miss_rate() - misses).abs() < 1e-12);
            }
            for &policy in report.curves.keys() {
                let causes = report.misses(policy).unwrap();
                prop_assert!(causes.iter().all(|cause| cause.regret + cause.forced_loads > -1e-12), "{}", policy);
            }
            prop_assert_eq!(report.misses(CurvePolicy::LookAhead { window: 4 }), None);
        }
        prop_assert!(report.pool.unwrap().misses(CurvePolicy::Lru).is_some());
    }
}
