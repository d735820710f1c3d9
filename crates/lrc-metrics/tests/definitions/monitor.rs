//! The monitor against counting the recent windows, and against whole sequences.

use expert_cache::curve::{Accesses, ColdStart, CurvePolicy, naive};
use lrc_metrics::{LoadBalance, Monitor, MonitorOptions, Srp, SrpValue, accumulate};
use moe_trace::{LayerId, MemoryTrace, Phase, RouterObserver, RoutingEvent, RoutingSource};
use proptest::prelude::*;

use crate::traces::trace;

/// Tokens of sequences that run side by side, as (sequence, first token, number of tokens): runs of the given lengths in
/// turn.
fn interleaved(trace: &MemoryTrace, lengths: &[usize]) -> Vec<(usize, usize, usize)> {
    let mut left: Vec<(usize, usize)> = trace.sequences().iter().map(|sequence| (0, sequence.phases.len())).collect();
    let mut events = Vec::new();
    let mut lengths = lengths.iter().cycle();
    while left.iter().any(|(next, len)| next < len) {
        for (sequence, (next, len)) in left.iter_mut().enumerate() {
            let run = (*lengths.next().unwrap()).min(*len - *next);
            if run > 0 {
                events.push((sequence, *next, run));
                *next += run;
            }
        }
    }
    events
}

fn route(monitor: &mut Monitor, trace: &MemoryTrace, (sequence, first, len): (usize, usize, usize)) {
    let (layers, k) = (trace.geometry().layers(), trace.geometry().top_k());
    let ids = &trace.sequences()[sequence].experts;
    for layer in trace.geometry().layer_ids() {
        let row = |token: usize| (token * layers + layer.index()) * k;
        let experts: Vec<u16> =
            (first..first + len).flat_map(|token| &ids[row(token)..row(token) + k]).copied().collect();
        let (token_ids, weights) = (&[][..], &[][..]);
        monitor.routed(&RoutingEvent {
            sequence,
            layer,
            phase: Phase::Prefill,
            token_ids,
            experts: &experts,
            weights,
            logits: None,
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// With a horizon beyond the trace the monitor is SRP, load, and the naive caches at its capacity.
    #[test]
    fn a_distant_horizon_sees_the_whole_trace(
        trace in trace(), window in 1usize..6, slots in 1usize..6, lengths in proptest::collection::vec(1usize..9, 1..4),
        miss in any::<bool>(),
    ) {
        let cold_start = if miss { ColdStart::Miss } else { ColdStart::Free };
        let slots = slots.min(trace.geometry().experts());
        let options = MonitorOptions { window, slots, horizon: 1 << 40, cold_start, sequences: 9 };
        let mut monitor = Monitor::new(trace.geometry(), &options).unwrap();
        for event in interleaved(&trace, &lengths) {
            route(&mut monitor, &trace, event);
        }
        (0..trace.len()).for_each(|sequence| monitor.sequence_end(sequence));
        prop_assert!(monitor.error().is_none());
        let srp = accumulate(&trace, &Srp::new(trace.geometry(), &[window]).unwrap(), &|_| {}).unwrap().finish();
        let load = accumulate(&trace, &LoadBalance::new(trace.geometry()), &|_| {}).unwrap().finish();
        for layer in trace.geometry().layer_ids() {
            let found = monitor.layer(layer).unwrap();
            prop_assert_eq!(&found.load, &load[layer.index()]);
            prop_assert_eq!(found.drift, None);
            match &srp {
                Ok(srp) => {
                    let srp = &srp[&window];
                    prop_assert_eq!((found.windows, found.srp), (srp.windows, srp.layers[layer.index()].value));
                }
                Err(_) => prop_assert_eq!((found.windows, found.srp.srp), (0, 0.0)),
            }
            let hits = |policy| {
                let (mut hits, mut all, mut accesses) = (0, 0, Accesses::new());
                for index in 0..trace.len() {
                    accesses.fill(&trace.sequence(index).unwrap(), &[layer]).unwrap();
                    hits += naive::hits(&accesses, policy, cold_start)[slots - 1];
                    all += accesses.len();
                }
                hits as f64 / all.max(1) as f64
            };
            prop_assert_eq!(found.lru_hit_rate, hits(CurvePolicy::Lru));
            prop_assert_eq!(found.sch_hit_rate, hits(CurvePolicy::LookAhead { window }));
        }
    }

    /// At every moment the windows are those that the last epochs' tokens completed.
    #[test]
    fn recent_windows_are_counted(trace in trace(), window in 1usize..5, horizon in 1u64..9) {
        let options = MonitorOptions { window, slots: 1, horizon, cold_start: ColdStart::Free, sequences: 9 };
        let mut monitor = Monitor::new(trace.geometry(), &options).unwrap();
        let experts = trace.geometry().experts();
        // For every token so far the uses of each expert by the window that it completed.
        let mut completed: Vec<Option<Vec<usize>>> = Vec::new();
        for (sequence, token, _) in interleaved(&trace, &[1]) {
            route(&mut monitor, &trace, (sequence, token, 1));
            let view = trace.sequence(sequence).unwrap();
            let uses = |expert| {
                let tokens = token + 1 - window..=token;
                tokens.filter(|&at| view.experts(at, LayerId(0)).any(|used| used.index() == expert)).count()
            };
            completed.push((token + 1 >= window).then(|| (0..experts).map(uses).collect()));
            if token + 1 == view.len() {
                monitor.sequence_end(sequence);
            }
            let horizon = usize::try_from(horizon).unwrap();
            let recent = (completed.len() / horizon).saturating_sub(1) * horizon;
            let mut counts = vec![0; window + 1];
            completed[recent..].iter().flatten().flatten().for_each(|&uses| counts[uses] += 1);
            let found = monitor.layer(LayerId(0)).unwrap();
            prop_assert_eq!(found.tokens, (completed.len() - recent) as u64);
            prop_assert_eq!(found.windows, completed[recent..].iter().flatten().count() as u64);
            prop_assert_eq!(found.srp, SrpValue::from_histogram(&counts));
        }
    }

    /// At every moment the hit rates are those of the last epochs' tokens; with windows of one token nothing waits.
    #[test]
    fn recent_hits_are_counted(trace in trace(), slots in 1usize..6, horizon in 1usize..9) {
        let slots = slots.min(trace.geometry().experts());
        let cold_start = ColdStart::Miss;
        let options = MonitorOptions { window: 1, slots, horizon: horizon as u64, cold_start, sequences: 1 };
        let mut monitor = Monitor::new(trace.geometry(), &options).unwrap();
        let (layer, sequence) = (LayerId(0), trace.sequence(0).unwrap());
        // Hits of the first tokens, and how many accesses they are.
        let of_first = |tokens: usize, policy| {
            let mut cut = trace.sequences()[0].clone();
            cut.experts.truncate(tokens * trace.geometry().layers() * trace.geometry().top_k());
            (cut.phases, cut.token_ids) = (vec![cut.phases[0]; tokens], None);
            let mut accesses = Accesses::new();
            accesses.fill(&cut.view(trace.geometry(), 0).unwrap(), &[layer]).unwrap();
            (naive::hits(&accesses, policy, cold_start)[slots - 1], accesses.len())
        };
        for token in 0..sequence.len() {
            route(&mut monitor, &trace, (0, token, 1));
            let recent = ((token + 1) / horizon).saturating_sub(1) * horizon;
            let rate = |policy| {
                let (all, before) = (of_first(token + 1, policy), of_first(recent, policy));
                (all.0 - before.0) as f64 / (all.1 - before.1).max(1) as f64
            };
            let found = monitor.layer(layer).unwrap();
            prop_assert_eq!(found.lru_hit_rate, rate(CurvePolicy::Lru));
            prop_assert_eq!(found.sch_hit_rate, rate(CurvePolicy::LookAhead { window: 1 }));
            prop_assert_eq!(found.look_ahead_gap(), found.sch_hit_rate - found.lru_hit_rate);
        }
    }
}
