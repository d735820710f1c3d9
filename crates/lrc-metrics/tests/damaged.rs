//! Serialized accumulators that were damaged are errors that say what is wrong.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::fmt::Debug;

use expert_cache::curve::{ColdStart, CurvePolicy};
use lrc_metrics::{
    Accumulator, ByDomain, Coactivation, Curves, LoadBalance, MetricsOptions, PositionSrp, ReferenceRouting,
    Saturation, Srp, TraceIntervals, TraceMetrics, Vocabulary, VocabularyToken,
};
use moe_trace::{DomainId, ExpertId, Geometry, LayerId, Phase, SequenceBuf};
use serde::{Serialize, de::DeserializeOwned};

const LAYERS: [LayerId; 1] = [LayerId(0)];

fn geometry() -> Geometry {
    Geometry::decoder(1, 2, 1).unwrap()
}

/// A A B A of domain 0.
fn sequence() -> SequenceBuf {
    let mut sequence = SequenceBuf::from_experts(&geometry(), vec![0, 0, 1, 0], Phase::Prefill).unwrap();
    sequence.token_ids = Some(vec![7, 7, 8, 7]);
    sequence.domain = Some(DomainId(0));
    sequence
}

fn folded<A: Accumulator>(mut accumulator: A) -> A {
    let (geometry, sequence) = (geometry(), sequence());
    accumulator.update(&sequence.view(&geometry, 0).unwrap()).unwrap();
    accumulator
}

/// Asserts that each replacement in the JSON text is noticed, and that without one the text is read.
fn damage<A: Serialize + DeserializeOwned + Debug>(accumulator: &A, damages: &[(&str, &str, &str)]) {
    let text = serde_json::to_string(accumulator).unwrap();
    let again: A = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
    for (old, new, message) in damages {
        assert!(text.contains(old), "{old} in {text}");
        let error = serde_json::from_str::<A>(&text.replacen(old, new, 1)).unwrap_err().to_string();
        let expected = format!("serialized accumulator is damaged: {message}");
        assert!(error.starts_with(&expected), "{error}, expected {expected}");
    }
}

#[test]
fn srp() {
    damage(
        &folded(Srp::new(&geometry(), &[2, 3]).unwrap()),
        &[
            ("\"window\":2", "\"window\":0", "window length is 0, expected 1..="),
            ("\"window\":3", "\"window\":2", "window length is 2, expected 3..="),
            ("[{\"window\":2,\"experts\"", "[{\"window\":3,\"experts\"", "window length of a layer is 3, expected 2"),
            ("\"windows\":3", "\"windows\":4", "number of windows is 4, expected 0..=3"),
            ("\"windows\":3", "\"windows\":2", "number of windows of a number of uses or more is 3, expected 0..=2"),
            ("\"windows\":3", "\"windows\":18446744073709551615", "number of windows is 18446744073709551615"),
            ("\"layers\":[0]", "\"layers\":[1]", "layer is 1, expected 0..=0"),
            ("\"layers\":[0]", "\"layers\":[]", "number of layers is 0, expected 1..="),
            ("\"layers\":[0]", "\"layers\":[0,0]", "number of stacks is 1, expected 2"),
            ("\"experts\":2", "\"experts\":3", "number of experts of a layer is 2, expected 3"),
            ("\"experts\":2", "\"experts\":0", "number of experts is 0, expected 1..=65535"),
            // A is used by three windows and twice by one of them, B once by two.
            ("\"at_least\":[3,1,2,0]", "\"at_least\":[3,1,2]", "length of a histogram is 3, expected 4..=4"),
            ("\"at_least\":[3,1,2,0]", "\"at_least\":[]", "number of windows without a histogram is 3, expected 0"),
            (
                "\"at_least\":[3,1,2,0]",
                "\"at_least\":[3,1,2,3]",
                "number of windows of a number of uses or more is 3, expected 0..=2",
            ),
            ("\"sequences\":1", "\"sequences\":0", "number of windows is 3, expected 0..=0"),
            ("\"longest\":4", "\"longest\":3", "number of windows is 3, expected 0..=2"),
        ],
    );
}

/// Each expert's windows are countable, those of all experts of a layer together are not.
#[test]
fn srp_of_too_many_windows() {
    let text = serde_json::to_string(&folded(Srp::new(&geometry(), &[2]).unwrap())).unwrap();
    let many = 1u64 << 47;
    let forged = text
        .replace("\"windows\":3", &format!("\"windows\":{many}"))
        .replace("\"sequences\":1", &format!("\"sequences\":{many}"));
    let error = serde_json::from_str::<Srp>(&forged).unwrap_err().to_string();
    let expected = format!("number of windows of all experts is {}, expected 0..={many}", 2 * many);
    assert_eq!(error, format!("serialized accumulator is damaged: {expected}"));
}

#[test]
fn position_srp() {
    damage(
        &folded(PositionSrp::new(&geometry(), &LAYERS, 2, 0..9).unwrap()),
        &[
            ("\"window\":2", "\"window\":0", "window length is 0, expected 1..="),
            ("\"window\":2", "\"window\":3", "length of a histogram is 4, expected 6..=6"),
            ("\"end\":9", "\"end\":1", "number of starts is 3, expected 0..=1"),
            ("\"windows\":1", "\"windows\":0", "number of windows of an expert is 1, expected 0..=0"),
        ],
    );
}

#[test]
fn load() {
    damage(
        &folded(LoadBalance::new(&geometry())),
        &[
            ("[[3,1]]", "[[3]]", "number of experts of a layer is 1, expected 2"),
            ("[[3,1]]", "[]", "number of layers is 0, expected 1"),
            ("[[3,1]]", "[[140737488355328,140737488355328]]", "uses of a layer is 281474976710656"),
            ("[[3,1]]", "[[5,1]]", "uses of an expert is 5, expected 0..=4"),
            ("\"tokens\":4", "\"tokens\":9007199254740993", "number of tokens is 9007199254740993"),
        ],
    );
}

#[test]
fn curves() {
    let curves = Curves::new(&geometry(), &LAYERS, &[CurvePolicy::Lru], ColdStart::Miss).unwrap();
    // One slot hits once in four accesses, two slots twice: a quarter and a half of 2^64.
    let rates = "[4611686018427387904,9223372036854775808]";
    damage(
        &folded(curves),
        &[
            (rates, "[4611686018427387904]", "number of capacities is 1, expected 2"),
            (rates, "[2,1]", "sum of hit rates is 1, expected 2..=18446744073709551616"),
            (rates, "[0,18446744073709551617]", "sum of hit rates is 18446744073709551617, expected 0..="),
            ("\"sequences\":1", "\"sequences\":5", "number of sequences is 5, expected 0..=4"),
        ],
    );
}

/// A state whose layers were counted in different ways, or of fewer sequences than it says.
#[test]
fn trace_metrics() {
    let options = MetricsOptions { windows: vec![2], pool: true, ..MetricsOptions::default() };
    let metrics = folded(TraceMetrics::new(&geometry(), &options).unwrap());
    let text = serde_json::to_string(&metrics).unwrap();
    assert_eq!(serde_json::to_string(&serde_json::from_str::<TraceMetrics>(&text).unwrap()).unwrap(), text);
    let error = |old: &str, new: &str| {
        assert!(text.contains(old), "{old} in {text}");
        serde_json::from_str::<TraceMetrics>(&text.replacen(old, new, 1)).unwrap_err().to_string()
    };
    let belong = "accumulators do not belong together: ";
    assert_eq!(error("\"free\"", "\"miss\""), format!("{belong}cold start is Free, expected Miss"));
    assert!(error("\"lru\"", "\"lfu\"").starts_with(&format!("{belong}list of policies is [Lru, Lfu")));
    assert!(error("\"look_ahead\":{\"window\":2}", "\"look_ahead\":{\"window\":3}").starts_with(belong));
    // The last numbers are those of the whole.
    let all = |text: &str, new: &str| {
        let at = text.rfind("\"tokens\":4").unwrap();
        serde_json::from_str::<TraceMetrics>(&(text[..at].to_owned() + new + &text[at + 10..])).unwrap_err().to_string()
    };
    assert!(
        all(&text, "\"tokens\":5").starts_with("serialized accumulator is damaged: number of tokens of the load is 4")
    );
}

/// Small texts with large claims are errors before anything is made as large.
#[test]
fn claims_allocate_nothing() {
    let layers: Vec<u16> = (0..60_000).collect();
    let stacks = vec!["decoder"; layers.len()];
    let claim = |layers: &[u16]| {
        let selection = serde_json::json!({
            "layers": layers, "stacks": stacks[..layers.len()], "all_layers": 65_535, "experts": 65_535,
        });
        let curve = serde_json::json!({ "policy": "lru", "rates": [], "sequences": 0, "accesses": 0 });
        let curves = serde_json::json!({ "selection": selection, "cold_start": "free", "curves": [curve] });
        serde_json::from_str::<Curves>(&curves.to_string()).unwrap_err().to_string()
    };
    assert!(claim(&layers).contains("number of capacities is 0, expected 3932100000"), "{}", claim(&layers));
    assert!(claim(&[0, 0]).starts_with("layer 0 is selected twice"));
}

#[test]
fn coactivation() {
    damage(
        &folded(Coactivation::new(&geometry(), &LAYERS).unwrap()),
        &[
            ("[[3,0,0,1]]", "[[3,0,0]]", "number of pairs is 3, expected 4"),
            ("[[3,0,0,1]]", "[[3,4,0,1]]", "uses of a pair is 4, expected 0..=3"),
        ],
    );
}

#[test]
fn saturation() {
    let (geometry, sequence) = (geometry(), sequence());
    let mut saturation = Saturation::new(&geometry);
    let view = sequence.view(&geometry, 0).unwrap();
    saturation.update(&view, &view).unwrap();
    damage(
        &saturation,
        &[
            ("\"kept\":[4]", "\"kept\":[5]", "number of kept experts is 5, expected 0..=4"),
            ("\"kept\":[4]", "\"kept\":[]", "number of layers is 0, expected 1"),
        ],
    );
}

#[test]
fn vocabulary() {
    damage(
        &folded(Vocabulary::new(&geometry(), &LAYERS, VocabularyToken::Input).unwrap()),
        &[
            ("[[0,3]]", "[[2,3]]", "cell of a token is 2, expected 0..=1"),
            ("[[0,3]]", "[[1,3],[0,1]]", "cell of a token is 0, expected 2..=1"),
            ("[[0,3]]", "[[0,18446744073709551615]]", "number of occurrences is 18446744073709551616"),
        ],
    );
}

#[test]
fn reference_routing() {
    let reference = [vec![ExpertId(0)], vec![ExpertId(1)]];
    damage(
        &folded(ReferenceRouting::new(&geometry(), &LAYERS, &reference, 1).unwrap()),
        &[
            ("\"reference\":[[0],[1]]", "\"reference\":[[0],[2]]", "expert of a set is 2, expected 0..=1"),
            ("\"reference\":[[0],[1]]", "\"reference\":[[0],[1,1]]", "order of the experts of a set is false"),
            ("\"reference\":[[0],[1]]", "\"reference\":[]", "number of domains is 0, expected 1..=65536"),
            ("\"domain\":0", "\"domain\":2", "domain is 2, expected 0..=1"),
            ("\"slots\":[3,1]", "\"slots\":[3]", "number of counts of a sequence is 1, expected 2"),
            ("\"without_ids\":0", "\"without_ids\":2", "number of sequences without ids is 2, expected 0..=1"),
        ],
    );
}

#[test]
fn trace_intervals() {
    let options = MetricsOptions { windows: vec![2], pool: true, ..MetricsOptions::default() };
    let metrics = folded(TraceIntervals::new(&geometry(), &options).unwrap());
    damage(
        &metrics,
        &[
            ("\"grouped\":false", "\"grouped\":true", "number of rows is 1, expected 96..=96"),
            ("\"limit\":96", "\"limit\":64", "number of groups is 64, expected 96"),
            ("\"lengths\":[2]", "\"lengths\":[0]", "window length is 0, expected 1..=4096"),
            // A is used by three windows and twice by one of them, B once by two.
            ("\"at_least\":[3,1,2,0,1]", "\"at_least\":[3,1,2]", "number of counts is 3, expected 4"),
            (
                "\"at_least\":[3,1,2,0,1]",
                "\"at_least\":[3,1,2,0,4000000000]",
                "number of counts is 4000000003, expected 0..=4",
            ),
            (
                "\"at_least\":[3,1,2,0,1]",
                "\"at_least\":[4,1,2,0,1]",
                "number of windows of a number of uses or more is 4, expected 0..=3",
            ),
            (
                "\"at_least\":[3,1,2,0,1]",
                "\"at_least\":[1,3,2,0,1]",
                "number of windows of a number of uses or more is 3, expected 0..=1",
            ),
            (
                "\"totals\":{\"tokens\":4,\"uses\":[3,1]",
                "\"totals\":{\"tokens\":4,\"uses\":[3,2]",
                "sum of the uses of groups is 2",
            ),
            (
                "\"totals\":{\"tokens\":4",
                "\"totals\":{\"tokens\":5",
                "sum of the tokens of groups is 5, expected 4..=4",
            ),
        ],
    );
}

#[test]
fn domains_of_different_metrics_do_not_belong_together() {
    let mut srp = serde_json::to_value(ByDomain::new(&Srp::new(&geometry(), &[2]).unwrap(), 2)).unwrap();
    srp["domains"][1] = serde_json::to_value(Srp::new(&geometry(), &[3]).unwrap()).unwrap();
    let error = serde_json::from_value::<ByDomain<Srp>>(srp).unwrap_err().to_string();
    assert_eq!(error, "accumulators do not belong together: list of window lengths is [3], expected [2]");
}
