//! Intervals of the whole report against resampling the sequences themselves.

use lrc_metrics::{
    Accumulator, Bootstrap, MetricsOptions, MetricsReport, TraceIntervals, TraceMetrics, accumulate, oracle,
};
use moe_trace::{Geometry, MemoryTrace, RoutingSource};
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::traces::{every_fold_agrees, memory, trace};

fn options(windows: Vec<usize>) -> MetricsOptions {
    MetricsOptions { windows, pool: true, ..MetricsOptions::default() }
}

/// A few figures of every kind.
fn figures(report: &MetricsReport) -> Vec<f64> {
    let layer = &report.layers[1];
    let expert = layer.experts[2].srp[&3];
    let pool = report.pool.as_ref().unwrap();
    let srp = [report.model.srp[&3], report.decoder.as_ref().unwrap().srp[&8], layer.srp[&8], expert];
    let mean = report.hit_rate("lfu", 2).unwrap();
    let rates = [layer.curves["belady"][1], layer.curves["sch_3"][2], pool.curves["lru"][5], mean];
    let load = [layer.load.deviation_percent, layer.load.entropy, layer.load.activation_rates[3]];
    srp.iter().flat_map(|value| [value.srp, value.rho]).chain(rates).chain(load).collect()
}

/// The figures of the trace whose sequences are drawn.
fn of_drawn(trace: &MemoryTrace, drawn: &[usize]) -> Vec<f64> {
    let mut metrics = TraceMetrics::new(trace.geometry(), &options(vec![3, 8])).unwrap();
    drawn.iter().for_each(|&index| metrics.update(&trace.sequence(index).unwrap()).unwrap());
    figures(&metrics.finish().unwrap())
}

#[test]
fn intervals_equal_resampling_the_trace() {
    let geometry = Geometry::decoder(2, 6, 2).unwrap();
    let trace = memory(&geometry, oracle::synthetic(&geometry, 12, 20, 4));
    let (resamples, seed) = (61, 3);
    let empty = TraceIntervals::new(&geometry, &options(vec![3, 8]), true).unwrap();
    let metrics = accumulate(&trace, &empty, &|_| {}).unwrap();
    let report = metrics.finish(&Bootstrap::new(resamples, 0.9, seed).unwrap()).unwrap();
    assert_eq!(report.value, metrics.metrics().finish().unwrap());

    // The order in which the intervals see sequences: that of the parts that they add to the first histogram and so on.
    // Sequences of one length differ first in the pooled histogram of the first expert.
    let order = {
        let mut order: Vec<usize> = (0..trace.len()).collect();
        let histograms = |index: usize| -> Vec<u64> {
            let sequence = trace.sequence(index).unwrap();
            let counts = |expert, window| oracle::window_counts(&sequence, moe_trace::LayerId(0), expert, window);
            (0..6).flat_map(|expert| counts(expert, 3)).collect()
        };
        order.sort_by_key(|&index| histograms(index));
        order
    };
    let drawn: Vec<Vec<f64>> = (0..resamples as u64)
        .map(|resample| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(resample);
            let drawn: Vec<usize> = (0..trace.len()).map(|_| order[random.random_range(0..trace.len())]).collect();
            of_drawn(&trace, &drawn)
        })
        .collect();
    let (value, low, high) = (figures(&report.value), figures(&report.low), figures(&report.high));
    for figure in 0..value.len() {
        let mut values: Vec<f64> = drawn.iter().map(|figures| figures[figure]).collect();
        values.sort_by(f64::total_cmp);
        // 5 % and 95 % of 60 steps between order statistics.
        let expected = (2.0 * value[figure] - values[57], 2.0 * value[figure] - values[3]);
        assert!((low[figure] - expected.0).abs() < 1e-7, "figure {figure}: {} {expected:?}", low[figure]);
        assert!((high[figure] - expected.1).abs() < 1e-7, "figure {figure}: {} {expected:?}", high[figure]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn folds_agree(trace in trace(), window in 1usize..6, experts in any::<bool>()) {
        let empty = TraceIntervals::new(trace.geometry(), &options(vec![window]), experts).unwrap();
        let bootstrap = Bootstrap::new(40, 0.9, 5).unwrap();
        every_fold_agrees(&trace, &empty, |metrics| metrics.finish(&bootstrap).map_err(|error| error.to_string()));
    }
}

#[test]
fn long_windows_and_few_sequences_say_so() {
    let geometry = Geometry::decoder(1, 4, 1).unwrap();
    let error = TraceIntervals::new(&geometry, &options(vec![4, 5000]), false).unwrap_err().to_string();
    assert_eq!(error, "window length is 5000 tokens, the limit is 4096");
    let trace = memory(&geometry, oracle::synthetic(&geometry, 1, 20, 3));
    let empty = TraceIntervals::new(&geometry, &options(vec![4]), false).unwrap();
    let one = accumulate(&trace, &empty, &|_| {}).unwrap();
    let error = one.finish(&Bootstrap::default()).unwrap_err().to_string();
    assert_eq!(error, "a bootstrap needs at least 2 sequences, there are 1");
    let error = empty.clone().merge(&TraceIntervals::new(&geometry, &options(vec![4]), true).unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "accumulators do not belong together: choice of expert intervals is true, expected false"
    );
}
