//! How fast are the hit-rate curves of every capacity, beside simulating each capacity by definition?
//!
//! Top-8, 512 tokens a sequence, throughput in tokens. One core: one layer of 64 and of 128 experts, and the pool that 48
//! layers of 128 experts share (384 accesses a token). The accesses of a sequence are read once outside of the timing
//! where several curves share them in use. The same layers with AVX-512, with AVX2 and without. Two threads against one:
//! all curves of a trace, reading included.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use expert_cache::curve::{Accesses, ColdStart, CurveAccumulator, CurvePolicy, naive};
use lrc_metrics::{Curves, accumulate};
use moe_benches::{TOKENS, synthetic_trace};
use moe_trace::{Geometry, LayerId, Synthetic, SyntheticOptions};

const POLICIES: [CurvePolicy; 5] = [
    CurvePolicy::Lru,
    CurvePolicy::Lfu,
    CurvePolicy::Belady,
    CurvePolicy::BeladyBypass,
    CurvePolicy::LookAhead { window: 16 },
];

/// The accesses of seeded sequences to the pool of all layers.
fn pools(geometry: &Geometry, sequences: usize, tokens: usize) -> Vec<Accesses> {
    let layers: Vec<LayerId> = geometry.layer_ids().collect();
    let dials = SyntheticOptions { sequences, tokens, ..SyntheticOptions::default() };
    let synthetic = Synthetic::new(geometry.clone(), dials);
    let accesses = |index| {
        let mut accesses = Accesses::new();
        accesses
            .fill(&synthetic.sequence(index).view(geometry, 0).expect("a valid sequence"), &layers)
            .expect("it fits");
        accesses
    };
    (0..sequences).map(accesses).collect()
}

/// One pass over some sequences, and the definition (of `slow` policies) on a few tokens.
fn compare(
    criterion: &mut Criterion,
    name: &str,
    geometry: &Geometry,
    sequences: usize,
    slow: &[CurvePolicy],
    few: usize,
) {
    let layers: Vec<LayerId> = geometry.layer_ids().collect();
    let fast = pools(geometry, sequences, TOKENS);
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements((sequences * TOKENS) as u64));
    for policy in POLICIES {
        let mut curve = CurveAccumulator::new(geometry, &layers, policy, ColdStart::Free).expect("a valid policy");
        group.bench_function(BenchmarkId::new("one pass", policy.to_string()), |bencher| {
            bencher.iter(|| {
                for accesses in &fast {
                    curve.update_accesses(black_box(accesses)).expect("the same pool");
                }
            });
        });
    }
    let short = &pools(geometry, 1, few)[0];
    group.throughput(Throughput::Elements(few as u64)).sample_size(10);
    for &policy in slow {
        group.bench_function(BenchmarkId::new("naive", policy.to_string()), |bencher| {
            bencher.iter(|| black_box(naive::hits(black_box(short), policy, ColdStart::Free)));
        });
    }
    group.finish();
}

fn one_layer(criterion: &mut Criterion) {
    for experts in [64, 128] {
        let geometry = Geometry::decoder(1, experts, 8).expect("a valid geometry");
        compare(criterion, &format!("curves of {experts} experts"), &geometry, 16, &POLICIES, 64);
    }
}

fn all_layers(criterion: &mut Criterion) {
    let geometry = Geometry::decoder(48, 128, 8).expect("a valid geometry");
    // By definition Belady and SCH look for every resident expert in all accesses to come: too slow to time here.
    compare(
        criterion,
        "curves of the pool of 48 x 128 experts",
        &geometry,
        1,
        &[CurvePolicy::Lru, CurvePolicy::Lfu],
        1,
    );
}

/// One layer with each set of instructions that the processor has.
fn instructions(criterion: &mut Criterion) {
    for experts in [64, 128] {
        let geometry = Geometry::decoder(1, experts, 8).expect("a valid geometry");
        let sequences = pools(&geometry, 16, TOKENS);
        let mut group = criterion.benchmark_group(format!("instructions, {experts} experts"));
        group.throughput(Throughput::Elements((sequences.len() * TOKENS) as u64));
        for policy in POLICIES {
            let curves = CurveAccumulator::by_instructions(&geometry, &[LayerId(0)], policy, ColdStart::Free);
            for (name, mut curve) in curves.expect("a valid policy") {
                group.bench_function(BenchmarkId::new(name, policy.to_string()), |bencher| {
                    bencher.iter(|| {
                        for accesses in &sequences {
                            curve.update_accesses(black_box(accesses)).expect("the same pool");
                        }
                    });
                });
            }
        }
        group.finish();
    }
}

fn threads(criterion: &mut Criterion) {
    const SEQUENCES: usize = 512;
    let trace = synthetic_trace(64, SEQUENCES);
    let geometry = Geometry::decoder(1, 64, 8).expect("a valid geometry");
    let empty = Curves::new(&geometry, &[LayerId(0)], &POLICIES, ColdStart::Free).expect("valid policies");
    let mut group = criterion.benchmark_group("five curves of 64 experts");
    group.throughput(Throughput::Elements((SEQUENCES * TOKENS) as u64)).sample_size(20);
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        group.bench_function(BenchmarkId::new("threads", threads), |bencher| {
            bencher
                .iter(|| pool.install(|| accumulate(&trace, black_box(&empty), &|_| {}).expect("the same geometry")));
        });
    }
    group.finish();
}

criterion_group!(benches, one_layer, all_layers, instructions, threads);
criterion_main!(benches);
