//! How fast is SRP, beside computing it by definition; how fast are all metrics together, their intervals, and a monitor?
//!
//! One core unless a number of threads is named, one layer of 64 or 128 experts, top-8, 512 tokens a sequence; throughput
//! in tokens. Ids are read from the trace every time.

use std::hint::black_box;
use std::ops::Range;
use std::thread;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lrc_metrics::{
    Accumulator, Bootstrap, MetricsOptions, Monitor, MonitorOptions, Srp, TraceIntervals, TraceMetrics, accumulate,
    oracle,
};
use moe_benches::{TOKENS, synthetic_trace};
use moe_trace::{LayerId, Phase, RouterObserver, RoutingEvent, RoutingSource, Sequence};

const WINDOWS: [usize; 4] = [4, 16, 64, 256];
const SEQUENCES: usize = 16;

/// SRP of every expert from the definition.
fn naive_srp(sequence: &Sequence<'_>, window: usize) {
    for expert in sequence.geometry().expert_ids() {
        let counts = oracle::window_counts(sequence, LayerId(0), expert.0, window);
        black_box(oracle::best_threshold(&counts));
    }
}

/// Each window length alone and all together, ids read from the trace every time.
fn srp(criterion: &mut Criterion) {
    for experts in [64, 128] {
        let trace = synthetic_trace(experts, SEQUENCES);
        let sequences: Vec<Sequence<'_>> =
            (0..SEQUENCES).map(|index| trace.sequence(index).expect("in range")).collect();
        let mut group = criterion.benchmark_group(format!("srp, {experts} experts"));
        group.throughput(Throughput::Elements((SEQUENCES * TOKENS) as u64));
        for windows in WINDOWS.chunks(1).chain([&WINDOWS[..]]) {
            let mut srp = Srp::new(RoutingSource::geometry(&trace), windows).expect("valid windows");
            group.bench_function(BenchmarkId::new("steps", format!("{windows:?}")), |bencher| {
                bencher
                    .iter(|| sequences.iter().for_each(|sequence| srp.update(black_box(sequence)).expect("it fits")));
            });
        }
        group.throughput(Throughput::Elements(TOKENS as u64)).sample_size(10);
        for windows in WINDOWS.chunks(1).chain([&WINDOWS[..]]) {
            group.bench_function(BenchmarkId::new("naive", format!("{windows:?}")), |bencher| {
                bencher.iter(|| windows.iter().for_each(|&window| naive_srp(black_box(&sequences[0]), window)));
            });
        }
        group.finish();
    }
}

fn everything(criterion: &mut Criterion) {
    let trace = synthetic_trace(64, SEQUENCES);
    let sequences: Vec<Sequence<'_>> = (0..SEQUENCES).map(|index| trace.sequence(index).expect("in range")).collect();
    let mut metrics =
        TraceMetrics::new(RoutingSource::geometry(&trace), &MetricsOptions::default()).expect("valid options");
    let mut group = criterion.benchmark_group("trace metrics");
    group.throughput(Throughput::Elements((SEQUENCES * TOKENS) as u64));
    group.bench_function("four windows, eight curves, load", |bencher| {
        bencher.iter(|| sequences.iter().for_each(|sequence| metrics.update(black_box(sequence)).expect("it fits")));
    });
    group.finish();
}

/// Folding a trace on one thread and on two, and what the machine gives two threads that share nothing.
fn threads(criterion: &mut Criterion) {
    const SEQUENCES: usize = 4096;
    let trace = synthetic_trace(64, SEQUENCES);
    let geometry = RoutingSource::geometry(&trace);
    let srp = Srp::new(geometry, &WINDOWS).expect("valid windows");
    let metrics = TraceMetrics::new(geometry, &MetricsOptions::default()).expect("valid options");
    let mut group = criterion.benchmark_group("accumulate");
    group.throughput(Throughput::Elements((SEQUENCES * TOKENS) as u64)).sample_size(10);
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        group.bench_function(BenchmarkId::new("srp", threads), |bencher| {
            bencher.iter(|| pool.install(|| accumulate(&trace, &srp, &|_done| {}).expect("a valid trace")));
        });
        group.bench_function(BenchmarkId::new("trace metrics", threads), |bencher| {
            bencher.iter(|| pool.install(|| accumulate(&trace, &metrics, &|_done| {}).expect("a valid trace")));
        });
    }
    let half = |numbers: Range<usize>| {
        let mut srp = srp.clone();
        numbers.for_each(|number| srp.update(&trace.sequence(number).expect("in range")).expect("it fits"));
        srp
    };
    group.bench_function("srp, each half by itself", |bencher| {
        bencher.iter(|| {
            thread::scope(|scope| {
                let halves = [0..SEQUENCES / 2, SEQUENCES / 2..SEQUENCES].map(|numbers| scope.spawn(|| half(numbers)));
                halves.map(|half| half.join().expect("no panic"))
            })
        });
    });
    group.finish();
}

/// Watching a running model token by token; throughput in tokens of one layer.
fn monitor(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("monitor");
    for experts in [64, 128] {
        let trace = synthetic_trace(experts, 1);
        let geometry = RoutingSource::geometry(&trace);
        let tokens = trace.sequence(0).expect("in range").to_buf().experts;
        let mut monitor = Monitor::new(geometry, &MonitorOptions::new(geometry)).expect("valid options");
        group.throughput(Throughput::Elements(TOKENS as u64));
        group.bench_function(BenchmarkId::new("experts", experts), |bencher| {
            bencher.iter(|| {
                for experts in tokens.chunks_exact(geometry.top_k()) {
                    let (sequence, layer, phase) = (0, LayerId(0), Phase::Decode);
                    let event =
                        RoutingEvent { sequence, layer, phase, token_ids: &[], experts, weights: &[], logits: None };
                    monitor.routed(black_box(&event));
                }
                monitor.sequence_end(0);
            });
        });
        assert!(monitor.error().is_none(), "events of a trace are valid");
    }
    group.finish();
}

/// What intervals of every figure cost beside the figures.
fn intervals(criterion: &mut Criterion) {
    const SEQUENCES: usize = 2048;
    let trace = synthetic_trace(64, SEQUENCES);
    let geometry = RoutingSource::geometry(&trace);
    let options = MetricsOptions::default();
    let metrics = TraceMetrics::new(geometry, &options).expect("valid options");
    let intervals = TraceIntervals::new(geometry, &options).expect("valid options");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
    let mut group = criterion.benchmark_group(format!("intervals, {SEQUENCES} sequences"));
    group.throughput(Throughput::Elements((SEQUENCES * TOKENS) as u64)).sample_size(10);
    group.bench_function("metrics alone", |bencher| {
        bencher.iter(|| pool.install(|| accumulate(&trace, &metrics, &|_done| {}).expect("a valid trace")));
    });
    group.bench_function("metrics and what is resampled", |bencher| {
        bencher.iter(|| pool.install(|| accumulate(&trace, &intervals, &|_done| {}).expect("a valid trace")));
    });
    let folded = accumulate(&trace, &intervals, &|_done| {}).expect("a valid trace");
    group.bench_function("1000 resamples", |bencher| {
        bencher.iter(|| pool.install(|| folded.finish(black_box(&Bootstrap::default())).expect("enough sequences")));
    });
    group.finish();
}

criterion_group!(benches, srp, everything, threads, monitor, intervals);
criterion_main!(benches);
