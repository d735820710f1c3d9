//! Once warm, a simulation allocates nothing, whatever it prefetches and however it serves.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

use std::sync::Arc;

use allocation_counter::measure;
use expert_cache::{
    EvictionPolicy, ExpertCache, ExpertSizes, Lru, MissPolicy, Oversize, Partition, Pool, PrefetcherKind, Requests,
    Serving, Simulation,
};
use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};

/// Tokens of three layers of eight experts, every sixteenth of another phase.
fn trace(tokens: u16) -> MemoryTrace {
    let geometry = Geometry::decoder(3, 8, 2).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone());
    let pair = |at: u16| {
        let first = (at % 97 * (at % 11) / 7 + at / 3) % 8;
        [first, (first + 1 + at % 7) % 8]
    };
    let mut buf =
        SequenceBuf::from_experts(&geometry, (0..3 * tokens).flat_map(pair).collect(), Phase::Decode).unwrap();
    buf.phases.iter_mut().step_by(16).for_each(|phase| *phase = Phase::Prefill.code());
    buf.weights = Some([0.75, 0.25].repeat(3 * usize::from(tokens)));
    trace.push(buf).unwrap();
    trace
}

fn simulation(trace: &MemoryTrace, kind: PrefetcherKind, misses: &MissPolicy) -> Simulation<Box<dyn EvictionPolicy>> {
    let geometry = trace.sequences().first().map(|_| Geometry::decoder(3, 8, 2).unwrap()).unwrap();
    let pools = Partition::grouped(&geometry, 2).unwrap().into_pools();
    let caches = pools.iter().map(|pool| {
        let sizes = ExpertSizes::each((0..pool.universe() as u64).map(|key| 1 + key % 3).collect()).unwrap();
        let policy: Box<dyn EvictionPolicy> = Box::new(Lru::new(pool.universe()));
        let cache = ExpertCache::in_bytes(policy, sizes, 7, Oversize::Waves).unwrap();
        cache.with_prefill_quota(2).unwrap().with_misses(misses.clone())
    });
    let mut simulation = Simulation::of_pools(pools.clone(), caches.collect()).unwrap();
    let serving = Serving::new(2, 2).unwrap();
    let future = Arc::new(Requests::served(trace, &Pool::model(&geometry), serving).unwrap());
    if let Some(prefetcher) = kind.build(&geometry, 1, Some(&future), 5).unwrap() {
        simulation = simulation.with_prefetching(prefetcher, 3);
    }
    simulation.with_serving(serving)
}

#[test]
fn twice_the_tokens_allocate_no_more() {
    let (short, long) = (trace(400), trace(800));
    let prefetchers = [
        PrefetcherKind::None,
        PrefetcherKind::PreviousToken,
        PrefetcherKind::NextLayer,
        PrefetcherKind::Markov,
        PrefetcherKind::History { passes: 8 },
        PrefetcherKind::Oracle { accuracy: 0.8 },
    ];
    for misses in [MissPolicy::Load, MissPolicy::Skip { share: 0.3 }] {
        for kind in prefetchers {
            let mut simulation = simulation(&long, kind, &misses);
            simulation.run(&long).unwrap();
            let [short, long] = [&short, &long].map(|trace| measure(|| simulation.run(trace).unwrap()).count_total);
            assert_eq!(short, long, "{kind}, {misses:?}");
            assert!(short > 0, "a run allocates its buffers");
        }
    }
}
