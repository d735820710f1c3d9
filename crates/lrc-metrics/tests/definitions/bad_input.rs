//! Traces with next to nothing in them.

use expert_cache::curve::{ColdStart, CurvePolicy};
use lrc_metrics::{
    Accumulator, Bootstrap, ByDomain, Coactivation, Curves, LoadBalance, MetricsOptions, PositionSrp, ReferenceRouting,
    RoutingAgreement, Srp, SrpValue, TraceIntervals, TraceMetrics, Vocabulary, VocabularyToken, accumulate,
};
use moe_trace::{DomainId, EMPTY_SLOT, ExpertId, Geometry, LayerId, Phase, SequenceBuf};

use crate::traces::memory;

const LAYERS: [LayerId; 1] = [LayerId(0)];

fn geometry() -> Geometry {
    Geometry::decoder(1, 3, 1).unwrap()
}

/// A sequence of domain 0.
fn sequence(experts: &[u16]) -> SequenceBuf {
    let mut sequence = SequenceBuf::from_experts(&geometry(), experts.to_vec(), Phase::Prefill).unwrap();
    sequence.domain = Some(DomainId(0));
    sequence.token_ids = Some(vec![7; experts.len()]);
    sequence
}

/// No sequence, a sequence of no token, tokens that use no expert.
#[test]
fn nothing_is_zero_or_an_error_that_says_so() {
    for sequences in [vec![], vec![sequence(&[])], vec![sequence(&[EMPTY_SLOT, EMPTY_SLOT])]] {
        let (count, longest) = (sequences.len(), sequences.first().map_or(0, |sequence| sequence.phases.len()));
        let trace = memory(&geometry(), sequences);
        let srp = accumulate(&trace, &ByDomain::new(&Srp::new(&geometry(), &[3]).unwrap(), 3), &|_| {}).unwrap();
        let too_long = format!("window length is 3 tokens, the longest of {count} sequences has {longest}");
        assert_eq!(srp.finish().unwrap_err().to_string(), too_long);
        let options = MetricsOptions { windows: vec![3], ..MetricsOptions::default() };
        let metrics = accumulate(&trace, &TraceMetrics::new(&geometry(), &options).unwrap(), &|_| {}).unwrap();
        assert_eq!(metrics.finish().unwrap_err().to_string(), too_long);

        let load = &accumulate(&trace, &LoadBalance::new(&geometry()), &|_| {}).unwrap().finish()[0];
        assert_eq!((load.dead_experts, load.max_load, load.entropy, load.utilization), (3, 0.0, 0.0, 0.0));
        let curves = Curves::new(&geometry(), &LAYERS, &[CurvePolicy::Belady], ColdStart::Free).unwrap();
        assert_eq!(accumulate(&trace, &curves, &|_| {}).unwrap().finish()[0].1.hit_rates, [0.0; 3]);
        let starts = PositionSrp::new(&geometry(), &LAYERS, 3, 0..9).unwrap();
        assert!(accumulate(&trace, &starts, &|_| {}).unwrap().finish().is_empty());
        let matrix = accumulate(&trace, &Coactivation::new(&geometry(), &LAYERS).unwrap(), &|_| {}).unwrap().finish();
        assert_eq!(matrix[0].sum(), 0.0);
        let vocabulary = Vocabulary::new(&geometry(), &LAYERS, VocabularyToken::Next).unwrap();
        assert_eq!(accumulate(&trace, &vocabulary, &|_| {}).unwrap().finish()[0][0].specialization, None);
        let reference = [vec![ExpertId(0)], vec![], vec![]];
        let routing = ReferenceRouting::new(&geometry(), &LAYERS, &reference, 1).unwrap();
        let layer = &accumulate(&trace, &routing, &|_| {}).unwrap().finish()[0];
        assert_eq!((layer.router, layer.shuffled), (RoutingAgreement::default(), RoutingAgreement::default()));
    }
}

/// A window length that no sequence has is absent, and the others are as without it.
#[test]
fn a_window_longer_than_any_sequence_is_absent() {
    let trace = memory(&geometry(), vec![sequence(&[1, 0, 1]), sequence(&[1, 1]), sequence(&[0, 2])]);
    let options = |windows: &[usize]| MetricsOptions { windows: windows.to_vec(), ..MetricsOptions::default() };
    let srp = |windows: &[usize]| {
        let metrics = TraceMetrics::new(&geometry(), &options(windows)).unwrap();
        let intervals = TraceIntervals::new(&geometry(), &options(windows)).unwrap();
        let bootstrap = Bootstrap::new(20, 0.9, 1).unwrap();
        let intervals = accumulate(&trace, &intervals, &|_| {}).unwrap().finish(&bootstrap).unwrap();
        let metrics = accumulate(&trace, &metrics, &|_| {}).unwrap().finish().unwrap();
        assert_eq!(intervals.value, metrics);
        [metrics, intervals.low, intervals.high].map(|report| (report.model.srp, report.layers[0].srp.clone()))
    };
    assert_eq!(srp(&[2, 4, 9]), srp(&[2]));
    let domains = ByDomain::new(&Srp::new(&geometry(), &[2, 4]).unwrap(), 1);
    let domains = accumulate(&trace, &domains, &|_| {}).unwrap().finish().unwrap();
    assert!(domains.keys().eq(&[2]));
}

/// One token: its expert is predicted perfectly, the others are never used.
#[test]
fn a_single_token_is_a_window_of_one() {
    let trace = memory(&geometry(), vec![sequence(&[1])]);
    let srp = accumulate(&trace, &Srp::new(&geometry(), &[1]).unwrap(), &|_| {}).unwrap().finish().unwrap();
    let srp = &srp[&1];
    let unused = SrpValue { srp: 0.0, rho: 0.0, threshold: 0, activation_rate: 0.0 };
    let experts = &srp.layers[0].experts;
    assert_eq!((experts[0], experts[2]), (unused, unused));
    // Every token of the window is used by the expert, so selecting all is the smallest best threshold.
    assert_eq!(experts[1], SrpValue { srp: 1.0, rho: 1.0, threshold: 0, activation_rate: 1.0 });
    assert_eq!((srp.model.srp, srp.model.activation_rate), (1.0, 1.0 / 3.0));
    let options = MetricsOptions { windows: vec![1], ..MetricsOptions::default() };
    let metrics = accumulate(&trace, &TraceIntervals::new(&geometry(), &options).unwrap(), &|_| {}).unwrap();
    let error = metrics.finish(&Bootstrap::default()).unwrap_err().to_string();
    assert_eq!(error, "a bootstrap needs at least 2 sequences, there are 1");
}

/// Equal sequences: intervals have no width, up to rounding of twice the figure.
#[test]
fn equal_sequences_leave_nothing_to_chance() {
    let trace = memory(&geometry(), vec![sequence(&[1, 0, 1]); 3]);
    let options = MetricsOptions { windows: vec![2], pool: true, ..MetricsOptions::default() };
    let mut metrics = TraceIntervals::new(&geometry(), &options).unwrap();
    metrics.merge(&accumulate(&trace, &metrics, &|_| {}).unwrap()).unwrap();
    let report = metrics.finish(&Bootstrap::new(20, 0.9, 1).unwrap()).unwrap();
    assert_eq!(report.low, report.high);
    assert!((report.low.model.srp[&2].srp - report.value.model.srp[&2].srp).abs() < 1e-12);
    assert_eq!(report.low.model.curves[&CurvePolicy::Lru].len(), 3);
}
