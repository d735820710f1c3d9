//! Simulations against their definition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use moe_trace::{Geometry, LayerId, MemoryTrace, Phase, SequenceBuf};
use proptest::prelude::*;

use super::*;
use crate::{
    ExpertKey, ExpertSizes, Lru, MissCost, MissPolicy, Oversize, Partition, PolicyKind, PrefetcherKind, Substitutes,
};

#[test]
fn sequences_of_another_model_are_refused() {
    let (ours, theirs) = (Geometry::decoder(1, 4, 1).unwrap(), Geometry::decoder(1, 8, 1).unwrap());
    let mut trace = MemoryTrace::new(theirs.clone());
    trace.push(SequenceBuf::from_experts(&theirs, vec![7], Phase::Decode).unwrap()).unwrap();
    let cache = ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves).unwrap();
    let mut simulation = Simulation::new(Pool::layer(&ours, LayerId(0)).unwrap(), cache).unwrap();
    let message = simulation.run(&trace).unwrap_err().to_string();
    assert_eq!(message, "pools and sequences are not of one model");
}

#[test]
fn caches_that_do_not_fit_their_pools_are_refused() {
    let geometry = Geometry::decoder(2, 4, 1).unwrap();
    let cache = || ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves).unwrap();
    let message = Simulation::new(Pool::model(&geometry), cache()).unwrap_err().to_string();
    assert_eq!(message, "the set is over 8 experts, the cache over 4");
    let layer = || Pool::layer(&geometry, LayerId(0)).unwrap();
    let message = Simulation::of_pools(vec![layer(), layer()], vec![cache(), cache()]).unwrap_err().to_string();
    assert_eq!(message, "layer 0 is in two pools, or twice in one");
    let message = Simulation::of_pools(vec![layer()], vec![cache(), cache()]).unwrap_err().to_string();
    assert_eq!(message, "there are 2 caches for 1 pools");
}

/// Two-expert tokens of three layers of five experts, prefill and decode mixed.
fn trace(tokens: &[(Vec<u16>, u8)]) -> MemoryTrace {
    let geometry = Geometry::decoder(3, 5, 2).unwrap();
    let mut trace = MemoryTrace::new(geometry);
    for half in tokens.chunks(tokens.len().div_ceil(2).max(1)) {
        let experts: Vec<u16> = half.iter().flat_map(|(experts, _)| experts.clone()).collect();
        let phases = half.iter().map(|&(_, phase)| phase).collect();
        trace.push(SequenceBuf { experts, phases, ..SequenceBuf::default() }).unwrap();
    }
    trace
}

fn token() -> impl Strategy<Value = (Vec<u16>, u8)> {
    let pair = (0u16..5, 1u16..5).prop_map(|(first, step)| [first, (first + step) % 5]);
    (proptest::collection::vec(pair, 3).prop_map(|pairs| pairs.concat()), prop_oneof![1 => Just(0u8), 3 => Just(1u8)])
}

/// The counts by their definition, from what an observer sees.
#[derive(Default)]
struct Recount {
    clock: u64,
    lead: u64,
    residents: BTreeSet<(usize, ExpertKey)>,
    /// Prefetched and not used since, and when.
    unused: BTreeMap<(usize, ExpertKey), u64>,
    displaced: BTreeSet<(usize, ExpertKey)>,
    total: PrefetchCounts,
}

impl Recount {
    fn evict(&mut self, pool: usize, key: ExpertKey) {
        assert!(self.residents.remove(&(pool, key)));
        let useless = u64::from(self.unused.remove(&(pool, key)).is_some());
        self.total.useless += useless;
        self.total.useless_bytes += useless * (u64::from(key.0) + 1);
    }

    fn served(&mut self, served: &Served<'_>) {
        self.clock += 1;
        let pool = served.pool;
        let hits: Vec<ExpertKey> = served.plan.hits().iter().map(|hit| hit.key).collect();
        for key in served.request.wanted().iter().map(ExpertKey::from_index) {
            assert_eq!(hits.contains(&key), self.residents.contains(&(pool, key)));
            if let Some(at) = self.unused.remove(&(pool, key)) {
                let late = self.clock - at < self.lead;
                *if late { &mut self.total.late } else { &mut self.total.useful } += 1;
            }
            self.total.polluting += u64::from(self.displaced.remove(&(pool, key)));
        }
        for load in served.plan.loads() {
            served.plan.evicted(load).unwrap().iter().for_each(|eviction| self.evict(pool, eviction.key));
            assert!(self.residents.insert((pool, load.key)));
        }
        for prefetched in served.prefetches() {
            let (pool, key) = (prefetched.pool, prefetched.load.key);
            for eviction in prefetched.evictions {
                let in_use = pool == served.pool && served.request.wanted().contains(eviction.key.index());
                assert!(!in_use || served.plan.waves().count() > 1, "only an earlier wave is over");
                self.evict(pool, eviction.key);
                self.displaced.insert((pool, eviction.key));
            }
            assert!(self.residents.insert((pool, key)));
            self.unused.insert((pool, key), self.clock);
            self.displaced.remove(&(pool, key));
            self.total.issued += 1;
            self.total.issued_bytes += u64::from(key.0) + 1;
        }
    }
}

fn simulation(
    trace: &MemoryTrace,
    partition: &Partition,
    per_cent: u64,
    (kind, ahead, per_request, lead): (PrefetcherKind, usize, usize, u64),
    serving: Serving,
) -> Simulation<Box<dyn EvictionPolicy>> {
    let geometry = trace.geometry();
    let caches = partition.pools().iter().map(|pool| {
        let sizes = ExpertSizes::each((1..=pool.universe() as u64).collect()).unwrap();
        let bytes = sizes.largest().max(sizes.total() * per_cent / 100);
        let policy = PolicyKind::Lru.build(pool.shape(), 1, None).unwrap();
        ExpertCache::in_bytes(policy, sizes, bytes, Oversize::Waves).unwrap()
    });
    let mut simulation =
        Simulation::of_pools(partition.pools().to_vec(), caches.collect()).unwrap().with_serving(serving);
    let future = Arc::new(Requests::served(trace, &Pool::model(geometry), serving).unwrap());
    if let Some(prefetcher) = kind.build(geometry, ahead, Some(&future), 7).unwrap() {
        simulation = simulation.with_prefetching(prefetcher, per_request).with_prefetch_lead(lead);
    }
    simulation
}

const PREFETCHERS: [PrefetcherKind; 6] = [
    PrefetcherKind::PreviousToken,
    PrefetcherKind::NextLayer,
    PrefetcherKind::Markov,
    PrefetcherKind::History { passes: 3 },
    PrefetcherKind::Oracle { accuracy: 0.5 },
    PrefetcherKind::None,
];

proptest! {
    /// Every prefetcher, any pools, sizes, batches: an observer sees all, and counts the same.
    #[test]
    fn prefetches_are_counted_as_defined(
        tokens in proptest::collection::vec(token(), 0..30),
        partition in 1usize..4,
        per_cent in 0u64..100,
        kind in 0usize..6,
        (ahead, per_request, lead) in (1usize..5, 0usize..4, 1u64..4),
        (batch, window) in (1usize..3, 1usize..3),
    ) {
        let trace = trace(&tokens);
        let partition = Partition::grouped(trace.geometry(), partition).unwrap();
        let serving = Serving::new(batch, window).unwrap();
        let prefetcher = (PREFETCHERS[kind], ahead, per_request, lead);
        let mut simulation = simulation(&trace, &partition, per_cent, prefetcher, serving);
        let mut recount = Recount { lead, ..Recount::default() };
        simulation.observe(&trace, |served| recount.served(served)).unwrap();
        let mut total = PrefetchCounts::default();
        simulation.prefetch_counts().iter().for_each(|counts| total.merge(counts));
        prop_assert_eq!(total, recount.total);
        prop_assert_eq!(total.pending(), recount.unused.len() as u64);
        let unused = simulation.caches().iter().map(|cache| cache.unused().count()).sum::<usize>();
        prop_assert_eq!(unused, recount.unused.len());
    }

    /// Who knows the next layer misses nothing but the first.
    #[test]
    fn a_perfect_oracle_leaves_only_the_first_miss(
        tokens in proptest::collection::vec(token(), 1..30),
        global in any::<bool>(),
    ) {
        let tokens: Vec<_> = tokens.into_iter().map(|(experts, _)| (experts, 1)).collect();
        let trace = trace(&tokens);
        let geometry = trace.geometry();
        let partition = if global { Partition::global(geometry) } else { Partition::per_layer(geometry) };
        let capacity = if global { 4 } else { 2 };
        let caches = partition.pools().iter().map(|pool| {
            let policy = PolicyKind::Lru.build(pool.shape(), capacity, None).unwrap();
            ExpertCache::new(policy, pool.universe(), capacity, Oversize::Waves).unwrap()
        });
        let mut simulation = Simulation::of_pools(partition.pools().to_vec(), caches.collect()).unwrap();
        let future = Arc::new(Requests::from_source(&trace, &Pool::model(geometry)).unwrap());
        let oracle = PrefetcherKind::Oracle { accuracy: 1.0 }.build(geometry, 1, Some(&future), 0).unwrap().unwrap();
        simulation = simulation.with_prefetching(oracle, 2);
        simulation.run(&trace).unwrap();
        let loads: Vec<u64> = simulation.counts().iter().map(|counts| counts.total().loads).collect();
        prop_assert_eq!(loads, [2, 0, 0]);
        let useless = simulation.prefetch_counts().iter().map(|counts| counts.useless + counts.late).sum::<u64>();
        prop_assert_eq!(useless, 0);
    }

    /// A trace held as requests is served like the trace itself.
    #[test]
    fn replays_equal_runs(tokens in proptest::collection::vec(token(), 0..30), batch in 1usize..3) {
        let trace = trace(&tokens);
        let pool = Pool::model(trace.geometry());
        let serving = Serving::new(batch, 1).unwrap();
        let live = || {
            let cache = ExpertCache::new(Lru::new(15), 15, 4, Oversize::Waves).unwrap();
            Simulation::new(pool.clone(), cache).unwrap().with_serving(serving)
        };
        let (mut run, mut replay) = (live(), live());
        run.run(&trace).unwrap();
        replay.replay(&Requests::served(&trace, &pool, serving).unwrap()).unwrap();
        prop_assert_eq!(run.counts(), replay.counts());
    }
}

#[test]
fn skipping_and_substituting_lose_mass() {
    // Top-2 of 4 experts, 2 slots; weights 0.75 and 0.25.
    let geometry = Geometry::decoder(1, 4, 2).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone());
    let mut sequence = SequenceBuf::from_experts(&geometry, vec![0, 1, 0, 2, 3, 0, 1, 0], Phase::Decode).unwrap();
    sequence.weights = Some([0.75f32, 0.25].repeat(4));
    trace.push(sequence).unwrap();
    let pool = Pool::model(&geometry);
    let run = |misses: MissPolicy| {
        let cache = ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves).unwrap().with_misses(misses);
        let mut simulation = Simulation::new(pool.clone(), cache).unwrap();
        let mut skips = Vec::new();
        simulation
            .observe(&trace, |served| {
                skips.extend(
                    served
                        .plan
                        .skips()
                        .iter()
                        .map(|skip| (skip.key.0, skip.substitute.map(|substitute| substitute.key.0))),
                );
            })
            .unwrap();
        (skips, simulation.counts()[0].decode, simulation.mass()[0])
    };
    // {0,1}: 0 is loaded, 1 is skipped. {0,2}: 2 is skipped. {3,0}: 3 takes the free slot, 0 stays. {1,0}: 1 has 0.75 now.
    let (skips, counts, mass) = run(MissPolicy::Skip { share: 0.25 });
    assert_eq!(skips, [(1, None), (2, None)]);
    assert_eq!((counts.hits, counts.loads, counts.skips, counts.accesses()), (3, 3, 2, 8));
    assert_eq!((mass.total, mass.skipped, mass.lost()), (4.0, 0.5, 0.125));
    // {0,1}: nobody is there to stand in for 1. {0,2}: 1 does for 2. {3,0}: 3 is too important. {1,0}: so is 1.
    let substitutes = Arc::new(Substitutes::by_coactivation(&Requests::from_source(&trace, &pool).unwrap()).unwrap());
    let (skips, counts, mass) = run(MissPolicy::Substitute { share: 0.25, substitutes });
    assert_eq!(skips, [(2, Some(1))]);
    assert_eq!((counts.hits, counts.loads, counts.skips), (3, 4, 1));
    assert_eq!((mass.substituted, mass.lost()), (0.25, 0.0625));

    let bare = SequenceBuf::from_experts(&geometry, vec![0, 1], Phase::Decode).unwrap();
    let mut unweighted = MemoryTrace::new(geometry);
    unweighted.push(bare).unwrap();
    let cache =
        ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves).unwrap().with_misses(MissPolicy::Skip { share: 0.5 });
    let message = Simulation::new(pool.clone(), cache).unwrap().run(&unweighted).unwrap_err().to_string();
    assert_eq!(message, "skipping and substituting need router weights, and the request has none");
}

/// A load costs 3, the host 2 a token.
#[derive(Debug)]
struct ByTokens;

impl MissCost for ByTokens {
    fn load(&self, _: &Request<'_>, _: ExpertKey) -> f64 {
        3.0
    }

    fn host(&self, request: &Request<'_>, expert: ExpertKey) -> f64 {
        2.0 * f64::from(request.uses(expert))
    }
}

#[test]
fn the_cheaper_way_is_taken() {
    let geometry = Geometry::decoder(1, 4, 1).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone());
    let mut sequence = SequenceBuf::from_experts(&geometry, vec![0, 0, 1, 2, 0], Phase::Prefill).unwrap();
    sequence.phases[4] = Phase::Decode.code();
    trace.push(sequence).unwrap();
    let run = |misses: MissPolicy| {
        let cache = ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves).unwrap().with_misses(misses);
        let mut simulation = Simulation::new(Pool::model(&geometry), cache).unwrap();
        simulation.run(&trace).unwrap();
        let counts = simulation.counts()[0];
        (counts.total().hits, counts.total().loads, counts.total().bypasses)
    };
    // Two prefilled tokens share 0, so that loading it is cheaper; then it is there.
    assert_eq!(run(MissPolicy::Cheaper(Arc::new(ByTokens))), (1, 1, 2));
    assert_eq!(run(MissPolicy::Host), (0, 0, 4));
    assert_eq!(run(MissPolicy::Load), (0, 4, 0));
}
