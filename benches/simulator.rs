//! How many expert accesses a second does the simulator judge?
//!
//! One core, one layer of 64 experts, top-8, 16 slots unless told otherwise; throughput in expert accesses. The requests
//! are recorded once outside of the timing.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use expert_cache::{
    EvictionPolicy, ExpertCache, ExpertSizes, Lru, Oversize, Partition, PolicyKind, Pool, PrefetcherKind, Requests,
    Simulation, Sweep,
};
use moe_benches::{TOKENS, synthetic_model, synthetic_trace};
use moe_trace::{Geometry, RoutingSource};

const SEQUENCES: usize = 16;
const ACCESSES: u64 = (SEQUENCES * TOKENS * 8) as u64;
const SLOTS: usize = 16;

fn simulation<P: EvictionPolicy>(pool: &Pool, cache: ExpertCache<P>) -> Simulation<P> {
    Simulation::new(pool.clone(), cache).expect("the cache is the pool's")
}

fn policies(criterion: &mut Criterion) {
    let trace = synthetic_trace(64, SEQUENCES);
    let pool = Pool::model(trace.geometry());
    let requests = Arc::new(Requests::from_source(&trace, &pool).expect("a valid trace"));
    let mut group = criterion.benchmark_group("policies");
    group.throughput(Throughput::Elements(ACCESSES)).sample_size(20);
    for kind in [PolicyKind::Lru, PolicyKind::Lfu, PolicyKind::Belady, PolicyKind::LookAhead { window: 16 }] {
        for slots in [8, SLOTS, 32, 48] {
            group.bench_function(BenchmarkId::new(kind.to_string(), slots), |bencher| {
                bencher.iter(|| {
                    let policy = kind.build(pool.shape(), slots, Some(&requests)).expect("a valid capacity");
                    let cache = ExpertCache::new(policy, 64, slots, Oversize::Waves).expect("a valid capacity");
                    let mut simulation = simulation(&pool, cache);
                    simulation.replay(black_box(&requests)).expect("requests of the pool");
                    black_box(simulation.counts()[0])
                });
            });
        }
    }
    group.finish();
}

fn engine(criterion: &mut Criterion) {
    let trace = synthetic_trace(64, SEQUENCES);
    let pool = Pool::model(trace.geometry());
    let requests = Requests::from_source(&trace, &pool).expect("a valid trace");
    let slots = || ExpertCache::new(Lru::new(64), 64, SLOTS, Oversize::Waves).expect("a valid capacity");
    let bytes = || {
        let sizes = ExpertSizes::each((0..64).map(|expert| 3 + expert % 2).collect()).expect("positive sizes");
        ExpertCache::in_bytes(Lru::new(64), sizes, 56, Oversize::Waves).expect("a valid capacity")
    };
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(ACCESSES)).sample_size(20);
    let mut bench = |name: &str, cache: &dyn Fn() -> ExpertCache<Lru>| {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut simulation = simulation(&pool, cache());
                simulation.replay(black_box(&requests)).expect("requests of the pool");
                black_box(simulation.counts()[0])
            });
        });
    };
    bench("slots", &slots);
    bench("guarded", &|| slots().with_prefill_quota(4).expect("an empty cache"));
    bench("bytes", &bytes);
    group.bench_function("live, from the trace", |bencher| {
        bencher.iter(|| {
            let mut simulation = simulation(&pool, slots());
            simulation.run(black_box(&trace)).expect("a trace of the model");
            black_box(simulation.counts()[0])
        });
    });
    group.finish();
}

fn prefetchers(criterion: &mut Criterion) {
    let geometry = Geometry::decoder(8, 64, 8).expect("a valid geometry");
    let trace = synthetic_model(&geometry, 2);
    let pools = Partition::per_layer(&geometry).into_pools();
    let future = Arc::new(Requests::from_source(&trace, &Pool::model(&geometry)).expect("a valid trace"));
    let mut group = criterion.benchmark_group("prefetchers");
    group.throughput(Throughput::Elements(2 * TOKENS as u64 * 64)).sample_size(10);
    for kind in [
        PrefetcherKind::None,
        PrefetcherKind::PreviousToken,
        PrefetcherKind::NextLayer,
        PrefetcherKind::Markov,
        PrefetcherKind::History { passes: 64 },
        PrefetcherKind::Oracle { accuracy: 0.9 },
    ] {
        group.bench_function(kind.to_string(), |bencher| {
            bencher.iter(|| {
                let cache = |_: &Pool| ExpertCache::new(Lru::new(64), 64, SLOTS, Oversize::Waves);
                let caches = pools.iter().map(cache).collect::<Result<_, _>>().expect("a valid capacity");
                let mut simulation = Simulation::of_pools(pools.clone(), caches).expect("a partition");
                let prefetcher = kind.build(&geometry, 1, Some(&future), 1).expect("valid parameters");
                if let Some(prefetcher) = prefetcher {
                    simulation = simulation.with_prefetching(prefetcher, 8);
                }
                simulation.run(black_box(&trace)).expect("a trace of the model");
                black_box(simulation.counts()[0])
            });
        });
    }
    group.finish();
}

fn sweeps(criterion: &mut Criterion) {
    let trace = synthetic_trace(64, SEQUENCES);
    let mut group = criterion.benchmark_group("sweep of 64 capacities");
    group.throughput(Throughput::Elements(64 * ACCESSES)).sample_size(10);
    for kind in [PolicyKind::Lru, PolicyKind::Belady] {
        let sweep = Sweep::new(Partition::per_layer(trace.geometry()), &[kind]);
        group.bench_function(kind.to_string(), |bencher| {
            bencher.iter(|| black_box(sweep.run(black_box(&trace), |_, _| ()).expect("a valid sweep")));
        });
    }
    group.finish();
}

criterion_group!(benches, policies, engine, prefetchers, sweeps);
criterion_main!(benches);
