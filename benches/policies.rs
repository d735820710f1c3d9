//! How many expert accesses a second does a simulated cache serve, policy by policy?
//!
//! One core, all of `ExpertCache::request` included, requests prepared outside of the timing; throughput in expert
//! accesses. One layer of 64 experts, top-8, 16 and 32 slots; and a pool of 48 layers of 128 experts, top-8, a quarter of
//! it in slots.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use expert_cache::{
    Demand, ExpertCache, ExpertKey, Oversize, PolicyKind, Pool, RequestBuffer, Requests, Serving, for_each_request,
};
use moe_benches::{synthetic_model, synthetic_trace};
use moe_trace::{Geometry, LayerId, MemoryTrace, Phase, RoutingSource};

fn served(trace: &MemoryTrace, pool: &Pool) -> (Vec<(LayerId, RequestBuffer)>, Arc<Requests>) {
    let mut requests = Vec::new();
    for_each_request(trace, std::slice::from_ref(pool), Serving::default(), |demand| {
        if let Demand::Request { request, .. } = demand {
            let mut buffer = RequestBuffer::new(pool.universe());
            for expert in request.wanted().iter() {
                let key = ExpertKey(u32::try_from(expert).expect("keys are u32"));
                buffer.want(key, request.mass(key));
            }
            requests.push((request.layer(), buffer));
        }
        Ok(())
    })
    .expect("a valid trace");
    (requests, Arc::new(Requests::from_source(trace, pool).expect("a valid pool")))
}

fn serve_all(criterion: &mut Criterion, name: &str, trace: &MemoryTrace, pool: &Pool, capacities: &[usize]) {
    let (requests, future) = served(trace, pool);
    let shape = pool.shape();
    let accesses: usize = (0..future.len()).map(|request| future.members(request).len()).sum();
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(accesses as u64)).sample_size(10);
    for &kind in PolicyKind::all() {
        for &capacity in capacities {
            let cache = || {
                let policy = kind.build(shape, capacity, Some(&future)).expect("a valid policy");
                ExpertCache::new(policy, shape.universe(), capacity, Oversize::Waves).expect("a valid capacity")
            };
            group.bench_function(BenchmarkId::new(kind.to_string(), capacity), |bencher| {
                bencher.iter_batched_ref(
                    cache,
                    |cache| {
                        for (layer, buffer) in &requests {
                            black_box(cache.request(buffer.request(*layer, Phase::Decode)).expect("the same pool"));
                        }
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

fn one_layer(criterion: &mut Criterion) {
    let trace = synthetic_trace(64, 32);
    serve_all(criterion, "one layer of 64", &trace, &Pool::model(trace.geometry()), &[16, 32]);
}

fn whole_model(criterion: &mut Criterion) {
    let geometry = Geometry::decoder(48, 128, 8).expect("a valid geometry");
    let trace = synthetic_model(&geometry, 1);
    serve_all(criterion, "48 layers of 128", &trace, &Pool::model(&geometry), &[6144 / 4]);
}

criterion_group!(benches, one_layer, whole_model);
criterion_main!(benches);
