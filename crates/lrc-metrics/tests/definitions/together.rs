//! SRP and curves against their definitions, alone and in one pass.

use std::collections::BTreeSet;

use expert_cache::curve::{Accesses, ColdStart, CurvePolicy, naive};
use lrc_metrics::{
    Bootstrap, ByDomain, Curves, LoadBalance, MetricError, MetricsOptions, ModelCorrelations, PositionSrp, Resampled,
    Srp, SrpReport, TraceIntervals, TraceMetrics, Vocabulary, VocabularyToken, accumulate,
};
use moe_trace::{
    DomainId, Geometry, LayerId, MemoryTrace, MoeLayer, Phase, RoutingSource, Sequence, SequenceBuf, Stack, TraceError,
};
use proptest::prelude::*;

use crate::traces::{agrees, every_fold_agrees, memory, naive_counts, synthetic, trace};

/// Compares expert, layer and model level at every window length, all lengths counted at once.
fn srp_agrees(trace: &dyn RoutingSource, windows: &[usize]) {
    let tokens = (0..trace.len()).map(|index| trace.sequence(index).unwrap().len()).max();
    let fitting: BTreeSet<usize> = windows.iter().copied().filter(|&window| tokens >= Some(window)).collect();
    let srp = accumulate(trace, &Srp::new(trace.geometry(), windows).unwrap(), &|_| {}).unwrap();
    let reports = match srp.finish() {
        Err(MetricError::WindowTooLong { window, longest, .. }) => {
            assert_eq!((Some(&window), Some(longest)), (windows.iter().min(), tokens));
            Default::default()
        }
        reports => reports.unwrap(),
    };
    assert!(reports.keys().eq(&fitting), "{windows:?}");
    for (&window, report) in &reports {
        assert_eq!(report.window, window);
        report_agrees(trace, report);
    }
}

fn report_agrees(trace: &dyn RoutingSource, report: &SrpReport) {
    let window = report.window;
    let add = |sum: &mut Vec<u64>, more: &[u64]| sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    let mut model = vec![0; window + 1];
    for layer in &report.layers {
        let mut pooled = vec![0; window + 1];
        for (expert, value) in layer.experts.iter().enumerate() {
            let id = LayerId(u16::try_from(layer.layer).unwrap());
            let counts = naive_counts(trace, id, expert, window);
            agrees(value, &counts);
            add(&mut pooled, &counts);
        }
        agrees(&layer.value, &pooled);
        assert_eq!(report.windows, pooled.iter().sum::<u64>() / trace.geometry().experts() as u64);
        let is_used = pooled[1..].iter().any(|&windows| windows > 0);
        assert_eq!(report.unused_layers.contains(&layer.layer), !is_used);
        if is_used {
            add(&mut model, &pooled);
        }
    }
    if report.unused_layers.len() < report.layers.len() {
        agrees(&report.model, &model);
    } else {
        assert_eq!((report.model.srp, report.model.activation_rate), (0.0, 0.0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Lengths of one token, of a whole sequence, of more than any, repeated and in any order.
    #[test]
    fn srp_equals_counting_every_window(trace in trace(), windows in proptest::collection::vec(1usize..33, 0..5)) {
        srp_agrees(&trace, &windows);
    }

    #[test]
    fn window_lengths_together_are_window_lengths_apart(trace in trace(), first in 1usize..4, second in 4usize..20) {
        let of = |windows: &[usize]| Srp::new(trace.geometry(), windows).unwrap();
        every_fold_agrees(&trace, &of(&[second, first]), |srp| srp.finish().map_err(|error| error.to_string()));
        let all = |windows: &[usize]| accumulate(&trace, &of(windows), &|_| {}).unwrap().finish().ok();
        if let Some(together) = all(&[second, first]) {
            for (window, report) in &together {
                prop_assert_eq!(report, &all(&[*window]).unwrap()[window]);
            }
        }
    }

    #[test]
    fn folds_agree(trace in trace(), window in 1usize..8) {
        let options = MetricsOptions { windows: vec![window], pool: true, ..MetricsOptions::default() };
        let empty = TraceMetrics::new(trace.geometry(), &options).unwrap();
        every_fold_agrees(&trace, &empty, |metrics| metrics.finish().map_err(|error| error.to_string()));
    }

    /// The metrics together are the metrics one by one, for any choice of layers.
    #[test]
    fn together_equals_apart(trace in trace(), window in 1usize..4) {
        let geometry = trace.geometry();
        let mut layers: Vec<LayerId> = geometry.layer_ids().collect();
        layers.reverse();
        let options = MetricsOptions {
            windows: vec![window, 1, window],
            layers: Some(layers.clone()),
            pool: true,
            cold_start: ColdStart::Miss,
        };
        let all = accumulate(&trace, &TraceMetrics::new(geometry, &options).unwrap(), &|_| {}).unwrap();
        let srp = accumulate(&trace, &Srp::of_layers(geometry, &layers, &[window, 1]).unwrap(), &|_| {}).unwrap();
        let load = accumulate(&trace, &LoadBalance::of_layers(geometry, &layers).unwrap(), &|_| {}).unwrap().finish();
        let policies = [CurvePolicy::Belady, CurvePolicy::LookAhead { window }];
        let curves = |layers: &[LayerId]| {
            let empty = Curves::new(geometry, layers, &policies, ColdStart::Miss).unwrap();
            accumulate(&trace, &empty, &|_| {}).unwrap().finish()
        };
        let Ok(report) = all.finish() else {
            prop_assert!(srp.finish().is_err());
            return Ok(());
        };
        let srp = srp.finish().unwrap();
        // A window longer than every sequence is absent from both.
        let srp = srp.get(&window);
        prop_assert_eq!(report.model.srp.get(&window), srp.map(|srp| &srp.model));
        prop_assert_eq!(report.pool.as_ref().unwrap().curves[&CurvePolicy::Belady].clone(), curves(&layers)[0].1.hit_rates.clone());
        for (position, layer) in report.layers.iter().enumerate() {
            prop_assert_eq!(layer.layer, layers[position].index());
            prop_assert_eq!(layer.srp.get(&window), srp.map(|srp| &srp.layers[position].value));
            prop_assert_eq!(&layer.load, &load[position]);
            for (policy, curve) in curves(&layers[position..=position]) {
                prop_assert_eq!(&layer.curves[&policy], &curve.hit_rates);
            }
            let unused: Vec<usize> =
                report.layers.iter().filter(|layer| !layer.is_used()).map(|layer| layer.layer).collect();
            prop_assert_eq!(&report.unused_layers, &unused);
            for (&policy, rates) in &report.model.curves {
                let used = report.layers.iter().filter(|layer| !unused.contains(&layer.layer));
                let of_layers: Vec<f64> = used.map(|layer| layer.curves[&policy][0]).collect();
                let mean = of_layers.iter().sum::<f64>() / of_layers.len().max(1) as f64;
                prop_assert!((rates[0] - mean).abs() < 1e-12);
                prop_assert_eq!(report.hit_rate(policy, 1), Some(rates[0]));
                prop_assert_eq!(report.hit_rate(policy, 0), None);
            }
            for (expert, value) in layer.experts.iter().enumerate() {
                let apart = srp.map(|srp| &srp.layers[position].experts[expert]);
                prop_assert_eq!(value.srp.get(&window), apart);
                prop_assert_eq!(apart.map(|value| value.srp), srp.map(|srp| srp.experts()[[position, expert]]));
            }
        }
    }
}

/// An encoder and a decoder are models of their own layers.
#[test]
fn stacks_are_models_of_their_layers() {
    let stack = |stack| MoeLayer { model_layer: 0, stack };
    let layers = vec![stack(Stack::Decoder), stack(Stack::Encoder), stack(Stack::Decoder), stack(Stack::Encoder)];
    let geometry = Geometry::new(layers, 8, 2).unwrap();
    let trace = synthetic(&geometry, 5, 40, 3);
    let of = |layers: Option<Vec<LayerId>>| {
        let options = MetricsOptions { windows: vec![4], layers, ..MetricsOptions::default() };
        accumulate(&trace, &TraceMetrics::new(&geometry, &options).unwrap(), &|_| {}).unwrap().finish().unwrap()
    };
    let all = of(None);
    let (encoder, decoder) = (of(Some(vec![LayerId(1), LayerId(3)])), of(Some(vec![LayerId(0), LayerId(2)])));
    assert_eq!((all.encoder, all.decoder), (Some(encoder.model.clone()), Some(decoder.model.clone())));
    assert_eq!((encoder.encoder, encoder.decoder), (Some(encoder.model), None));
    assert_eq!((decoder.encoder, decoder.decoder), (None, Some(decoder.model)));
}

#[test]
fn sequences_of_another_k_and_layers_given_twice_say_so() {
    let (two, four) = (Geometry::decoder(1, 8, 2).unwrap(), Geometry::decoder(1, 8, 4).unwrap());
    let trace = synthetic(&four, 2, 9, 3);
    let options = MetricsOptions { windows: vec![4], ..MetricsOptions::default() };
    let error = accumulate(&trace, &TraceMetrics::new(&two, &options).unwrap(), &|_| {}).unwrap_err().to_string();
    assert_eq!(error, "a sequence is top-4, the accumulator top-2");
    let twice = MetricsOptions { layers: Some(vec![LayerId(0), LayerId(0)]), ..options };
    let error = TraceMetrics::new(&two, &twice).unwrap_err().to_string();
    assert_eq!(error, "layer 0 is selected twice");
}

/// A trace like the reference trace, drawn here: all four policies and SRP agree with the definitions.
#[test]
fn a_synthetic_trace_agrees() {
    let geometry = Geometry::decoder(1, 64, 8).unwrap();
    let trace = synthetic(&geometry, 3, 96, 20_240_607);
    srp_agrees(&trace, &[4, 16, 64]);
    let mut accesses = Accesses::new();
    for policy in [CurvePolicy::Lru, CurvePolicy::Lfu, CurvePolicy::Belady, CurvePolicy::LookAhead { window: 16 }] {
        let empty = Curves::new(&geometry, &[LayerId(0)], &[policy], ColdStart::Free).unwrap();
        let fast = accumulate(&trace, &empty, &|_| {}).unwrap().finish();
        let mut slow = vec![0; 64];
        for index in 0..trace.len() {
            accesses.fill(&trace.sequence(index).unwrap(), &[LayerId(0)]).unwrap();
            let hits = naive::hits(&accesses, policy, ColdStart::Free);
            slow.iter_mut().zip(hits).for_each(|(sum, hits)| *sum += hits);
        }
        // All sequences have 96 * 8 accesses, so the mean of rates is the rate of sums.
        let slow: Vec<f64> = slow.iter().map(|&hits| hits as f64 / (3.0 * 96.0 * 8.0)).collect();
        for (fast, slow) in fast[0].1.hit_rates.iter().zip(&slow) {
            assert!((fast - slow).abs() < 1e-12, "{policy:?}");
        }
    }
}

/// The synthetic trace is consistent in time: sticky noise makes SRP beat its lower bound.
#[test]
fn a_synthetic_trace_is_sticky() {
    let geometry = Geometry::decoder(2, 32, 4).unwrap();
    let trace = synthetic(&geometry, 8, 256, 1);
    let srp = accumulate(&trace, &Srp::new(&geometry, &[16]).unwrap(), &|_| {}).unwrap().finish().unwrap();
    let rate = srp[&16].model.activation_rate;
    assert!((rate - 0.125).abs() < 1e-12);
    assert!(srp[&16].model.srp > 2.0 * (2.0 * rate / (1.0 + rate)));
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let geometry = Geometry::decoder(2, 16, 3).unwrap();
    let mut sequences = synthetic(&geometry, 12, 40, 7).sequences().to_vec();
    // Lengths that differ, so that means over sequences are not means over tokens.
    for (index, sequence) in sequences.iter_mut().enumerate() {
        let tokens = 40 - index;
        sequence.experts.truncate(tokens * 2 * 3);
        sequence.phases.truncate(tokens);
        sequence.weights = None;
    }
    let trace = memory(&geometry, sequences);
    let options = MetricsOptions { windows: vec![4, 16], pool: true, ..MetricsOptions::default() };
    let empty = TraceMetrics::new(&geometry, &options).unwrap();
    let of = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| accumulate(&trace, &empty, &|_| {}).unwrap().finish().unwrap())
    };
    let one = of(1);
    assert_eq!(one, of(2));
    assert_eq!(one, of(7));
    assert_eq!((one.sequences, one.tokens), (12, 12 * 40 - 66));
    assert_eq!(one.curves(CurvePolicy::LookAhead { window: 16 }).unwrap().dim(), (2, 16));
    assert_eq!(one.activation_rates().dim(), (2, 16));
    assert_eq!(one.curves(CurvePolicy::LookAhead { window: 5 }), None);
}

#[test]
fn the_report_has_the_documented_keys() {
    let geometry = Geometry::decoder(2, 4, 1).unwrap();
    let trace = synthetic(&geometry, 1, 20, 3);
    let options = MetricsOptions {
        windows: vec![4, 16],
        layers: Some(vec![LayerId(1)]),
        pool: true,
        ..MetricsOptions::default()
    };
    let metrics = accumulate(&trace, &TraceMetrics::new(&geometry, &options).unwrap(), &|_| {}).unwrap();
    let report = metrics.finish().unwrap();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["layers"][0]["layer"], 1);
    for value in [&json["model"], &json["layers"][0], &json["layers"][0]["experts"][3]] {
        for key in ["srp", "rho", "threshold"] {
            assert!(value["srp"]["16"][key].is_number(), "{key} of {value}");
        }
    }
    for curves in [&json["model"]["curves"], &json["layers"][0]["curves"], &json["pool"]["curves"]] {
        for key in ["lru", "lfu", "belady", "belady-bypass", "look-ahead-4", "look-ahead-16"] {
            assert_eq!(curves[key].as_array().unwrap().len(), 4, "{key}");
        }
    }
    assert_eq!((&json["convention"], &json["cold_start"]), (&"paper".into(), &"free".into()));
    assert_eq!(json.get("unused_layers"), None);
    assert_eq!(serde_json::from_value::<lrc_metrics::MetricsReport>(json.clone()).unwrap(), report);
    // A report of an older version, with the names of that time.
    let mut old = json.to_string();
    for (now, then) in [
        ("belady-bypass", "belady_bypass"),
        ("look-ahead-", "sch_"),
        (r#""convention":"paper","#, ""),
        (r#""cold_start":"free","#, ""),
    ] {
        assert!(old.contains(now), "{now}");
        old = old.replace(now, then);
    }
    assert_eq!(serde_json::from_str::<lrc_metrics::MetricsReport>(&old).unwrap(), report);
}

/// Two layers of 2 experts, top-1, of which the second has no access: A B in windows of 2.
#[test]
fn a_layer_without_an_access_is_in_no_pool() {
    let geometry = Geometry::decoder(2, 2, 1).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone());
    let experts = vec![0, moe_trace::EMPTY_SLOT, 1, moe_trace::EMPTY_SLOT];
    trace.push(SequenceBuf::from_experts(&geometry, experts, Phase::Decode).unwrap()).unwrap();
    let srp = accumulate(&trace, &Srp::new(&geometry, &[2]).unwrap(), &|_| {}).unwrap();
    let report = srp.finish().unwrap().remove(&2).unwrap();
    // One window; A and B are used by one of its two tokens. 2 uses of 2 * 2 pairs of a token and an expert, and all is
    // selected: F1(0) = 2 * 2 / (2 * 2 + 2). Four more pairs of the other layer would give a rate of 0.25 and threshold 1.
    assert_eq!((report.model.activation_rate, report.model.threshold), (0.5, 0));
    assert_eq!((report.model.srp, report.model.lower_bound(), report.model.rho), (2.0 / 3.0, 2.0 / 3.0, 2.0));
    assert_eq!((report.unused_layers.as_slice(), report.decoder), (&[1][..], Some(report.model)));
    assert_eq!((report.layers[0].is_used(), report.layers[1].is_used()), (true, false));

    // Two domains that agree in nothing but the zeros of the second layer: A A A B and A B B B.
    let mut trace = MemoryTrace::new(geometry.clone()).with_domains(["a", "b"]);
    for (domain, uses) in [(0, [0, 0, 0, 1]), (1, [0, 1, 1, 1])] {
        let experts = uses.into_iter().flat_map(|expert| [expert, moe_trace::EMPTY_SLOT]).collect();
        let mut sequence = SequenceBuf::from_experts(&geometry, experts, Phase::Decode).unwrap();
        sequence.domain = Some(DomainId(domain));
        trace.push(sequence).unwrap();
    }
    let load = accumulate(&trace, &ByDomain::new(&LoadBalance::new(&geometry), 2), &|_| {}).unwrap().finish().unwrap();
    // Rates 0.75 and 0.25 against 0.25 and 0.75; with two zeros more it would be 0.2.
    assert_eq!(load.correlation()[[0, 1]], -1.0);
    let srp = accumulate(&trace, &ByDomain::new(&Srp::new(&geometry, &[1]).unwrap(), 2), &|_| {}).unwrap();
    // SRP of single tokens is 1 wherever an expert is used: a constant has no correlation, with zeros it would be 1.
    assert!(srp.finish().unwrap()[&1].correlation()[[0, 1]].is_nan());
}

/// Three layers, of which the second has empty slots only.
fn with_an_unused_layer() -> MemoryTrace {
    let geometry = Geometry::decoder(3, 8, 2).unwrap();
    let used = synthetic(&geometry, 8, 40, 5);
    let mut trace = MemoryTrace::new(geometry.clone());
    for sequence in used.sequences() {
        let mut sequence = sequence.clone();
        sequence.experts.chunks_mut(6).for_each(|token| token[2..4].fill(moe_trace::EMPTY_SLOT));
        trace.push(sequence).unwrap();
    }
    trace
}

#[test]
fn a_layer_without_an_access_is_in_no_mean_and_is_named() {
    let trace = with_an_unused_layer();
    let options = MetricsOptions { windows: vec![4], ..MetricsOptions::default() };
    let of = |layers: Option<Vec<LayerId>>| {
        let options = MetricsOptions { layers, ..options.clone() };
        let empty = TraceIntervals::new(trace.geometry(), &options).unwrap();
        let metrics = accumulate(&trace, &empty, &|_| {}).unwrap();
        metrics.finish(&Bootstrap::new(50, 0.9, 1).unwrap()).unwrap()
    };
    let (all, used) = (of(None), of(Some(vec![LayerId(0), LayerId(2)])));
    assert_eq!((all.value.unused_layers.as_slice(), used.value.unused_layers.as_slice()), (&[1][..], &[][..]));
    assert!(all.value.layers[1].curves[&CurvePolicy::Lru].iter().all(|&rate| rate == 0.0));
    for (policy, rates) in &used.value.model.curves {
        assert_eq!(&all.value.model.curves[policy], rates, "{policy}");
        assert_eq!(all.value.model.srp, used.value.model.srp);
        assert_eq!((&all.low.model.srp, &all.high.model.srp), (&used.low.model.srp, &used.high.model.srp));
        for (of_all, of_used) in [(&all.low, &used.low), (&all.high, &used.high)] {
            let pairs = of_all.model.curves[policy].iter().zip(&of_used.model.curves[policy]);
            pairs.for_each(|(all, used)| assert!((all - used).abs() < 1e-12, "{policy}: {all} and {used}"));
        }
    }
    let json = serde_json::to_string(&all).unwrap();
    assert!(json.contains(r#""unused_layers":[1]"#));
    let none = of(Some(vec![LayerId(1)]));
    assert!(none.value.model.curves.values().flatten().all(|&rate| rate == 0.0));
}

/// Every report, with intervals of which some bounds do not exist, is read from its own JSON.
#[test]
fn every_report_is_read_from_its_own_json() {
    let geometry = Geometry::new(
        vec![MoeLayer { model_layer: 0, stack: Stack::Encoder }, MoeLayer { model_layer: 0, stack: Stack::Decoder }],
        8,
        2,
    )
    .unwrap();
    // One sequence alone has windows of 16.
    let mut sequences = synthetic(&geometry, 1, 40, 3).sequences().to_vec();
    sequences.extend(synthetic(&geometry, 3, 3, 4).sequences().iter().cloned());
    for (number, sequence) in (0u16..).zip(&mut sequences) {
        sequence.domain = Some(DomainId(number % 2));
        sequence.token_ids = Some((0u32..5).cycle().take(sequence.phases.len()).collect());
    }
    let mut trace = MemoryTrace::new(geometry.clone()).with_domains(["a", "b"]);
    sequences.into_iter().for_each(|sequence| trace.push(sequence).unwrap());
    let bootstrap = Bootstrap::new(20, 0.9, 1).unwrap();
    fn back<R: serde::Serialize + serde::de::DeserializeOwned>(report: &R, name: &str) -> String {
        let text = serde_json::to_string(report).unwrap();
        let read: R = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(serde_json::to_string(&read).unwrap(), text, "{name}");
        text
    }
    let options = MetricsOptions { windows: vec![2, 16], pool: true, ..MetricsOptions::default() };
    let metrics = accumulate(&trace, &TraceIntervals::new(&geometry, &options).unwrap(), &|_| {}).unwrap();
    let metrics = metrics.finish(&bootstrap).unwrap();
    assert!(back(&metrics, "MetricsIntervals").contains("null"), "no bound is missing");
    back(&metrics.value.model.misses(CurvePolicy::Lru).unwrap(), "MissDecomposition");
    back(&ModelCorrelations::of(&[metrics.value.clone(), metrics.value.clone()], 2, 1), "ModelCorrelations");
    let layers: Vec<LayerId> = geometry.layer_ids().collect();
    macro_rules! intervals {
        ($($name:literal: $empty:expr, $report:expr;)*) => {$(
            let resampled = accumulate(&trace, &Resampled::new($empty), &|_| {}).unwrap();
            back(&resampled.finish(&bootstrap, $report).unwrap(), $name);
        )*};
    }
    intervals! {
        "SrpReport": Srp::new(&geometry, &[2, 16]).unwrap(), |srp: &Srp| srp.finish();
        "DomainSrp": ByDomain::new(&Srp::new(&geometry, &[2, 16]).unwrap(), 2), |srp: &ByDomain<Srp>| srp.finish();
        "DomainLoad": ByDomain::new(&LoadBalance::new(&geometry), 2), |load: &ByDomain<LoadBalance>| load.finish();
        "StartSrp": PositionSrp::new(&geometry, &layers, 2, 0..9).unwrap(), |srp: &PositionSrp| Ok(srp.finish());
        "ExpertVocabulary": Vocabulary::new(&geometry, &layers, VocabularyToken::Input).unwrap(), |words: &Vocabulary| Ok(words.finish());
    }
}

#[test]
fn bad_windows_and_layers_say_why() {
    let geometry = Geometry::decoder(2, 4, 1).unwrap();
    let message = |options: MetricsOptions| TraceMetrics::new(&geometry, &options).unwrap_err().to_string();
    let windows = |windows| MetricsOptions { windows, ..MetricsOptions::default() };
    let layers = |layers| MetricsOptions { layers: Some(layers), ..MetricsOptions::default() };
    assert_eq!(message(windows(vec![0])), "window length is 0 tokens, it must be at least 1");
    assert_eq!(message(layers(vec![])), "no layer is selected, the trace has 2 MoE layers");
    assert_eq!(message(layers(vec![LayerId(2)])), "layer 2 is out of range, the trace has 2 MoE layers");

    // An absurd window allocates nothing and says what fits.
    let trace = synthetic(&geometry, 2, 20, 3);
    let srp = accumulate(&trace, &Srp::new(&geometry, &[usize::MAX]).unwrap(), &|_| {}).unwrap();
    let message = srp.finish().unwrap_err().to_string();
    assert_eq!(message, format!("window length is {} tokens, the longest of 2 sequences has 20", usize::MAX));

    let other = Geometry::decoder(1, 4, 1).unwrap();
    let error = accumulate(&trace, &Srp::new(&other, &[4]).unwrap(), &|_| {}).unwrap_err().to_string();
    assert_eq!(error, "a sequence has 2 layers x 4 experts, the accumulator 1 layers x 4 experts");
}

#[test]
fn progress_counts_to_the_number_of_sequences() {
    let geometry = Geometry::decoder(1, 4, 1).unwrap();
    let trace = synthetic(&geometry, 5, 4, 3);
    let seen = std::sync::Mutex::new(Vec::new());
    accumulate(&trace, &LoadBalance::new(&geometry), &|done| seen.lock().unwrap().push(done)).unwrap();
    let mut seen = seen.into_inner().unwrap();
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
}

/// A source whose sequences cannot be read from some number on.
struct Broken<'a>(&'a MemoryTrace, usize);

impl RoutingSource for Broken<'_> {
    fn geometry(&self) -> &Geometry {
        self.0.geometry()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn sequence(&self, index: usize) -> moe_trace::Result<Sequence<'_>> {
        if index < self.1 { self.0.sequence(index) } else { Err(TraceError::NoSuchSequence { index, len: self.1 }) }
    }
}

#[test]
fn the_first_bad_sequence_is_reported() {
    let geometry = Geometry::decoder(1, 4, 1).unwrap();
    let trace = synthetic(&geometry, 40, 4, 3);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    for _ in 0..50 {
        let error = pool.install(|| accumulate(&Broken(&trace, 7), &LoadBalance::new(&geometry), &|_| {}).unwrap_err());
        let MetricError::Trace(source) = error else { panic!("{error}") };
        assert_eq!(source.to_string(), "there is no sequence 7, the source has 7");
    }
}
