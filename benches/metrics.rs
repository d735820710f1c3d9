//! How fast are SRP and the hit-rate curves, beside computing them by definition?
//!
//! One core, one layer of 64 experts, top-8, 512 tokens a sequence; throughput in tokens. The accesses of a sequence are
//! read once outside of the timing where several metrics share them in use.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use expert_cache::curve::{Accesses, ColdStart, CurveAccumulator, CurvePolicy, naive};
use lrc_metrics::{Accumulator, MetricsOptions, Srp, TraceMetrics, oracle};
use moe_benches::{TOKENS, synthetic_trace};
use moe_trace::{LayerId, RoutingSource, Sequence};

const WINDOWS: [usize; 4] = [4, 16, 64, 256];
const SEQUENCES: usize = 16;

fn srp(criterion: &mut Criterion) {
    let trace = synthetic_trace(SEQUENCES);
    let sequences: Vec<Sequence<'_>> = (0..SEQUENCES).map(|index| trace.sequence(index).expect("in range")).collect();
    let mut group = criterion.benchmark_group("srp");
    group.throughput(Throughput::Elements((SEQUENCES * TOKENS) as u64));
    for window in WINDOWS {
        let mut srp = Srp::new(trace.geometry(), window).expect("a valid window");
        group.bench_function(BenchmarkId::new("steps", window), |bencher| {
            bencher.iter(|| sequences.iter().for_each(|sequence| srp.update(black_box(sequence)).expect("it fits")));
        });
    }
    group.throughput(Throughput::Elements(TOKENS as u64)).sample_size(10);
    for window in WINDOWS {
        group.bench_function(BenchmarkId::new("naive", window), |bencher| {
            bencher.iter(|| {
                for expert in 0..64 {
                    let counts = oracle::window_counts(black_box(&sequences[0]), LayerId(0), expert, window);
                    black_box(oracle::best_threshold(&counts));
                }
            });
        });
    }
    group.finish();
}

fn curves(criterion: &mut Criterion) {
    let trace = synthetic_trace(SEQUENCES);
    let accesses: Vec<Accesses> = (0..SEQUENCES)
        .map(|index| {
            let mut accesses = Accesses::new();
            accesses.fill(&trace.sequence(index).expect("in range"), &[LayerId(0)]).expect("it fits");
            accesses
        })
        .collect();
    let policies = [CurvePolicy::Lru, CurvePolicy::Lfu, CurvePolicy::Belady, CurvePolicy::LookAhead { window: 16 }];
    let mut group = criterion.benchmark_group("curves");
    group.throughput(Throughput::Elements((SEQUENCES * TOKENS) as u64));
    for policy in policies {
        let mut curve =
            CurveAccumulator::new(trace.geometry(), &[LayerId(0)], policy, ColdStart::Free).expect("a valid policy");
        group.bench_function(BenchmarkId::new("one pass", policy.label()), |bencher| {
            bencher.iter(|| {
                for accesses in &accesses {
                    curve.update_accesses(black_box(accesses)).expect("the same pool");
                }
            });
        });
    }
    group.throughput(Throughput::Elements(TOKENS as u64)).sample_size(10);
    for policy in policies {
        group.bench_function(BenchmarkId::new("naive", policy.label()), |bencher| {
            bencher.iter(|| black_box(naive::hits(black_box(&accesses[0]), policy, ColdStart::Free)));
        });
    }
    group.finish();
}

fn everything(criterion: &mut Criterion) {
    let trace = synthetic_trace(SEQUENCES);
    let sequences: Vec<Sequence<'_>> = (0..SEQUENCES).map(|index| trace.sequence(index).expect("in range")).collect();
    let mut metrics = TraceMetrics::new(trace.geometry(), &MetricsOptions::default()).expect("valid options");
    let mut group = criterion.benchmark_group("trace metrics");
    group.throughput(Throughput::Elements((SEQUENCES * TOKENS) as u64));
    group.bench_function("four windows, seven curves, load", |bencher| {
        bencher.iter(|| sequences.iter().for_each(|sequence| metrics.update(black_box(sequence)).expect("it fits")));
    });
    group.finish();
}

criterion_group!(benches, srp, curves, everything);
criterion_main!(benches);
