//! Host memory between disk and slots: its hits are the simulated ones, its bytes the disk's, within its budget.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::Device;
use common::{SHAPE, geometry, host_store, random, resident, serve, trace};
use expert_cache::{
    ExpertCache, ExpertKey, MissPolicy, Oversize, Partition, PolicyKind, PrefetcherKind, Request, Requests, Serving,
    Simulation,
};
use moe_offload::{
    BankReport, ExpertShape, ExpertStore, ExpertTypes, ExpertWeights, FileReads, HostCache, HostCounters, HostReport,
    HostSimulation, Lend, Lent, MappedStore, OffloadError, OffloadOptions, OffloadedExperts, ProjectionBytes,
    QuantizedExperts, RandomExperts, ReadAhead, Result, Transfers, WeightType, write_gguf,
};
use moe_trace::{ExpertId, ExpertSet, LayerId, Phase};

const EXPERT: u64 = 3 * 8 * 4 * 4;

fn total(cache: &HostCache) -> HostCounters {
    let mut total = HostCounters::default();
    cache.counters().iter().for_each(|counters| total.merge(counters));
    total
}

fn bytes(store: &dyn ExpertStore, layer: u16, expert: u16) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut keep = |parts: ProjectionBytes<'_>| {
        all = parts.concat();
        Ok(())
    };
    store.with_bytes(LayerId(layer), ExpertId(expert), &mut keep)?;
    Ok(all)
}

#[test]
fn bits_are_the_residents_whatever_is_kept_where() {
    let directory = tempfile::tempdir().unwrap();
    let path = [directory.path().join("experts.gguf")];
    write_gguf(&*host_store(SHAPE), &path[0], &mut |_, _| {}).unwrap();
    let trace = trace(2, 3, 24);
    let expected = serve(&resident(&*host_store(SHAPE)), &trace, Serving::default()).unwrap();
    for (number, policy) in [PolicyKind::Lru, PolicyKind::Sieve, PolicyKind::LfuAged].into_iter().enumerate() {
        for misses in [MissPolicy::Load, MissPolicy::Host] {
            for threads in [0, 2] {
                let below = MappedStore::open_gguf(&path).unwrap().with_reads(FileReads::Direct).unwrap();
                let cache =
                    Arc::new(HostCache::new(Arc::new(below), (1 + 5 * number as u64) * EXPERT, policy).unwrap());
                let options = OffloadOptions::slots(2).misses(misses.clone()).transfers(Transfers::threads(threads));
                let options = options.prefetch(PrefetcherKind::Markov, 1, 2);
                let bank = OffloadedExperts::new(cache.clone(), &Device::Cpu, options).unwrap();
                assert_eq!(serve(&bank, &trace, Serving::default()).unwrap(), expected);
                drop(bank);
                let total = total(&cache);
                assert_eq!(total.loaded_bytes, (total.loads + total.bypasses) * EXPERT);
                assert_eq!(total.hit_bytes, total.hits * EXPERT);
            }
        }
    }
}

#[test]
fn hits_of_every_tier_are_the_simulated_ones() {
    for (policy, host_policy, slots, host) in
        [(PolicyKind::Lru, PolicyKind::Lru, 2, 9), (PolicyKind::Lfu, PolicyKind::Arc, 3, 13)]
    {
        let trace = trace(1, 4, 32);
        let cache = Arc::new(HostCache::new(host_store(SHAPE), host * EXPERT + 1, host_policy).unwrap());
        let bank = OffloadedExperts::new(cache.clone(), &Device::Cpu, OffloadOptions::slots(slots).policy(policy));
        let bank = bank.unwrap();
        serve(&bank, &trace, Serving::default()).unwrap();

        let partition = Partition::per_layer(&geometry());
        let pools = partition.pools();
        let caches = pools.iter().map(|pool| {
            let policy = policy.build(pool.shape(), slots, None).unwrap();
            ExpertCache::new(policy, pool.universe(), slots, Oversize::Waves).unwrap()
        });
        let mut simulation = Simulation::of_pools(pools.to_vec(), caches.collect()).unwrap();
        let model = Partition::global(&geometry());
        let model = &model.pools()[0];
        let host = usize::try_from(host).unwrap();
        let policy = host_policy.build(model.shape(), host, None).unwrap();
        let mut below = ExpertCache::new(policy, model.universe(), host, Oversize::Bypass).unwrap();
        let mut expected = vec![(0, 0); SHAPE.layers];
        let observe = |served: &expert_cache::Served<'_>| {
            let layer = served.request.layer();
            for load in served.plan.loads() {
                let key: ExpertKey = model.key(layer, pools[served.pool].expert(load.key).unwrap().1).unwrap();
                let wanted = ExpertSet::from_members(model.universe(), [key.index()]);
                let plan = below.request(Request::new(&wanted, layer, Phase::Decode)).unwrap();
                expected[layer.index()].0 += plan.hits().len() as u64;
                expected[layer.index()].1 += plan.loads().len() as u64;
            }
        };
        simulation.observe(&trace, observe).unwrap();
        let report = bank.report().unwrap();
        for (layer, (counters, expected)) in report.layers.iter().zip(&expected).enumerate() {
            let HostReport { counters: host, load } = counters.host.unwrap();
            assert_eq!(load.samples, host.loads);
            assert!(load.p50_seconds <= load.p99_seconds && load.p99_seconds <= load.max_seconds);
            assert_eq!((host.hits, host.loads), *expected, "layer {layer}");
            let (prefill, decode) = (&counters.prefill.counters, &counters.decode.counters);
            assert_eq!(host.hits + host.loads, prefill.counts.loads + decode.counts.loads);
            assert_eq!(host.hit_bytes + host.loaded_bytes, prefill.loaded_bytes + decode.loaded_bytes);
        }
        let sum = report.total.host.unwrap();
        assert!(sum.counters.hits > 0 && sum.counters == total(&cache));
        let longest = report.layers.iter().map(|layer| layer.host.unwrap().load.max_seconds).fold(0.0, f64::max);
        assert_eq!((sum.load.samples, sum.load.max_seconds), (sum.counters.loads, longest));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["total"]["host"]["hits"], sum.counters.hits);
        assert_eq!(json["layers"][1]["host"]["load"]["samples"], report.layers[1].host.unwrap().load.samples);
        assert_eq!(serde_json::from_value::<BankReport>(json).unwrap(), report);
    }
}

/// Serves a trace with a bank over a cache in host memory and with both simulated; returns the simulated and the counted hits,
/// loads and bypasses of each layer.
fn simulated_and_counted(
    (policy, oversize, misses): (PolicyKind, Oversize, &MissPolicy),
    host_policy: PolicyKind,
    prefetcher: PrefetcherKind,
    seed: u64,
) -> [Vec<[u64; 3]>; 2] {
    let (trace, slots, host_bytes) = (trace(seed, 4, 24), 3, 11 * EXPERT);
    let partition = Partition::per_layer(&geometry());
    let pools = partition.pools();
    let policy = |pool: &expert_cache::Pool, slots| {
        policy.build(pool.shape(), slots, Some(&Arc::new(Requests::from_source(&trace, pool).unwrap())))
    };
    let prefetcher = || {
        let model = Arc::new(Requests::from_source(&trace, &expert_cache::Pool::model(&geometry())).unwrap());
        prefetcher.build(&geometry(), 1, Some(&model), 0).unwrap()
    };

    let caches = pools.iter().map(|pool| {
        let cache = ExpertCache::new(policy(pool, slots).unwrap(), pool.universe(), slots, oversize).unwrap();
        cache.with_misses(misses.clone())
    });
    let mut simulation = Simulation::of_pools(pools.to_vec(), caches.collect()).unwrap();
    if let Some(prefetcher) = prefetcher() {
        simulation = simulation.with_prefetching(prefetcher, 2);
    }
    let mut host = HostSimulation::new(&*host_store(SHAPE), host_bytes, host_policy).unwrap();
    simulation.observe(&trace, |served| host.serve(pools, served).unwrap()).unwrap();
    let three = |counters: &HostCounters| [counters.hits, counters.loads, counters.bypasses];
    let simulated = host.layers().iter().map(|layer| {
        let mut all = layer.loaded;
        all.merge(&layer.computed);
        three(&all)
    });

    let cache = Arc::new(HostCache::new(host_store(SHAPE), host_bytes, host_policy).unwrap());
    let options = OffloadOptions::slots(slots).partition(partition.clone()).policy_with(policy);
    let options = options.oversize(oversize).misses(misses.clone());
    let options = match prefetcher() {
        Some(prefetcher) => options.prefetch_with(prefetcher, 2),
        None => options,
    };
    let bank = OffloadedExperts::new(cache.clone(), &Device::Cpu, options).unwrap();
    serve(&bank, &trace, Serving::default()).unwrap();
    [simulated.collect(), cache.counters().iter().map(three).collect()]
}

#[test]
fn simulated_hits_are_the_counted_ones_for_all_policies_of_slots_and_host() {
    let fits = |kind: &PolicyKind| HostCache::new(host_store(SHAPE), 11 * EXPERT, *kind).is_ok();
    let hosts: Vec<PolicyKind> = PolicyKind::all().iter().copied().filter(fits).collect();
    assert!(hosts.len() > 10, "{hosts:?}");
    let mut hits = 0;
    for &policy in PolicyKind::all() {
        for (number, &host_policy) in (0..).zip(&hosts) {
            let slots = (policy, Oversize::Waves, &MissPolicy::Load);
            let [simulated, counted] = simulated_and_counted(slots, host_policy, PrefetcherKind::None, number % 7);
            assert_eq!(simulated, counted, "{policy} over {host_policy}");
            hits += counted.iter().map(|layer| layer[0]).sum::<u64>();
        }
    }
    assert!(hits > 1000, "{hits} hits");
}

#[test]
fn simulated_hits_are_the_counted_ones_whatever_prefetches_and_bypasses() {
    let prefetchers = [
        PrefetcherKind::PreviousToken,
        PrefetcherKind::NextLayer,
        PrefetcherKind::Markov,
        PrefetcherKind::History { passes: 8 },
        PrefetcherKind::Oracle { accuracy: 0.7 },
    ];
    for policy in [PolicyKind::Lfu, PolicyKind::Fifo, PolicyKind::Belady, PolicyKind::Hysteresis { dwell: 3 }] {
        for misses in [MissPolicy::Load, MissPolicy::Host] {
            for oversize in [Oversize::Waves, Oversize::Bypass] {
                for (seed, prefetcher) in (0..).zip(prefetchers) {
                    let slots = (policy, oversize, &misses);
                    let [simulated, counted] = simulated_and_counted(slots, PolicyKind::Lfu, prefetcher, seed);
                    assert_eq!(simulated, counted, "{policy}, {oversize:?}, {misses:?}, {prefetcher}");
                }
            }
        }
    }
}

/// Counts what is read of it, and fails now and then.
#[derive(Debug)]
struct Below {
    store: Arc<dyn ExpertStore>,
    reads: AtomicU64,
    fails: Mutex<Option<(u16, u16)>>,
}

impl Below {
    fn new(store: Arc<dyn ExpertStore>) -> Arc<Below> {
        Arc::new(Below { store, reads: AtomicU64::new(0), fails: Mutex::default() })
    }
}

impl ExpertStore for Below {
    fn shape(&self) -> ExpertShape {
        self.store.shape()
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        self.store.weight_types()
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        self.store.fetch(layer, expert)
    }

    fn lend<'l>(&self, layer: LayerId, expert: ExpertId, lend: Lend<'l>) -> Result<Lent<'l>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if *self.fails.lock().unwrap() == Some((layer.0, expert.0)) {
            return Err(OffloadError::NotOnHost);
        }
        self.store.lend(layer, expert, lend)
    }
}

#[test]
fn a_failed_load_leaves_room_and_is_tried_again() {
    let below = Below::new(host_store(SHAPE));
    let cache = HostCache::new(below.clone(), 2 * EXPERT, PolicyKind::Lru).unwrap();
    bytes(&cache, 0, 1).unwrap();
    *below.fails.lock().unwrap() = Some((0, 2));
    for _ in 0..3 {
        assert!(matches!(bytes(&cache, 0, 2), Err(OffloadError::NotOnHost)));
    }
    // Nobody has left for it.
    bytes(&cache, 0, 1).unwrap();
    bytes(&cache, 0, 3).unwrap();
    bytes(&cache, 0, 1).unwrap();
    *below.fails.lock().unwrap() = None;
    assert_eq!(bytes(&cache, 0, 2).unwrap(), bytes(&*below.store, 0, 2).unwrap());
    let total = total(&cache);
    assert_eq!((total.hits, total.loads, total.failed_loads, total.loaded_bytes), (2, 3, 3, 3 * EXPERT));
    assert_eq!(below.reads.load(Ordering::Relaxed), 6);
    let reports = cache.reports();
    assert_eq!(reports.layers.iter().map(|layer| layer.load.samples).collect::<Vec<_>>(), [6, 0, 0]);
    assert_eq!((reports.total.load, reports.total.counters), (reports.layers[0].load, total));
}

#[test]
fn loads_fill_memory_that_was_taken_before() {
    let shape = ExpertShape { layers: 2, experts: 4, hidden: 128, intermediate: 64 };
    let below = host_store(shape);
    let expert_bytes = below.bytes() / 8;
    let take_all = |cache: &HostCache| {
        let every = (0..2).flat_map(|layer| (0..4).map(move |expert| (LayerId(layer), ExpertId(expert))));
        let allocated = allocation_counter::measure(|| {
            let cache: &dyn ExpertStore = cache;
            every.for_each(|(layer, expert)| cache.with_bytes(layer, expert, &mut |_| Ok(())).unwrap());
        });
        allocated.bytes_total
    };
    let cache = || HostCache::new(below.clone(), 3 * expert_bytes, PolicyKind::Lru).unwrap();
    assert!(take_all(&cache()) > 3 * expert_bytes);
    let ready = cache().allocate().unwrap();
    assert!(take_all(&ready) < expert_bytes);
    assert_eq!(bytes(&ready, 0, 2).unwrap(), bytes(&*below, 0, 2).unwrap());
    assert_eq!(total(&ready).loads, 9);
}

#[test]
fn quantized_experts_take_turns_in_memory_that_was_taken_before() {
    let shape = ExpertShape { layers: 2, experts: 8, hidden: 64, intermediate: 64 };
    let store: Arc<dyn ExpertStore> = Arc::new(RandomExperts::new(shape, WeightType::Q8_0, 1).unwrap());
    let room = 3 * store.bytes() / 16;
    let cache = HostCache::new(store.clone(), room, PolicyKind::Lru).unwrap().allocate().unwrap();
    let mut places = HashSet::new();
    let mut state = 5;
    for _ in 0..200 {
        let expert = random(&mut state) % 16;
        let (layer, expert) = (u16::try_from(expert / 8).unwrap(), u16::try_from(expert % 8).unwrap());
        let mut found = Vec::new();
        let keep = &mut |parts: ProjectionBytes<'_>| {
            places.insert(parts.gate.as_ptr().addr());
            found = parts.concat();
            Ok(())
        };
        (&cache as &dyn ExpertStore).with_bytes(LayerId(layer), ExpertId(expert), keep).unwrap();
        assert_eq!(found, bytes(&*store, layer, expert).unwrap());
    }
    assert_eq!(places.len(), 3);
    // Filled, it takes no more.
    assert_eq!(cache.allocate().unwrap().capacity_bytes(), room);
}

#[test]
fn what_was_fetched_stays_as_it_was() {
    let below = host_store(SHAPE);
    let cache = HostCache::new(below.clone(), EXPERT, PolicyKind::Lru).unwrap();
    let fetched = cache.fetch(LayerId(0), ExpertId(0)).unwrap();
    // Its room is taken by others, again and again.
    for expert in 1..8 {
        assert_eq!(bytes(&cache, 1, expert).unwrap(), bytes(&*below, 1, expert).unwrap());
    }
    let mut found = Vec::new();
    let keep = &mut |parts: ProjectionBytes<'_>| {
        found = parts.concat();
        Ok(())
    };
    fetched.with_bytes(keep).unwrap();
    assert_eq!(found, bytes(&*below, 0, 0).unwrap());
}

#[test]
fn read_ahead_fills_it_and_no_expert_is_read_twice_at_a_time() {
    let below = Below::new(host_store(SHAPE));
    let cache: Arc<dyn ExpertStore> = Arc::new(HostCache::new(below.clone(), u64::MAX, PolicyKind::Lru).unwrap());
    let ahead = ReadAhead::new(&cache, 2, 64).unwrap();
    (0..8).for_each(|expert| assert!(ahead.want(LayerId(0), ExpertId(expert)).unwrap()));
    while below.reads.load(Ordering::Relaxed) < 8 {
        std::thread::yield_now();
    }
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                let mut state = thread;
                for _ in 0..500 {
                    let (layer, expert) = (random(&mut state) % 3, random(&mut state) % 8);
                    let (layer, expert) = (u16::try_from(layer).unwrap(), u16::try_from(expert).unwrap());
                    assert_eq!(
                        bytes(&**cache, layer, expert).unwrap(),
                        bytes(&*host_store(SHAPE), layer, expert).unwrap()
                    );
                }
            });
        }
    });
    let counters = cache.host_reports().unwrap().total.counters;
    assert_eq!(below.reads.load(Ordering::Relaxed), 24);
    assert_eq!((counters.hits, counters.loads), (1984, 24));
}

#[test]
fn threads_that_crowd_a_small_cache_read_what_they_want() {
    let shape = ExpertShape { layers: 2, experts: 8, hidden: 32, intermediate: 32 };
    let dense: Arc<dyn ExpertStore> = Arc::new(RandomExperts::new(shape, WeightType::F32, 0).unwrap());
    for store in [dense.clone(), Arc::new(QuantizedExperts::new(dense, WeightType::Q8_0).unwrap())] {
        let expected: Vec<Vec<u8>> = (0..16).map(|number| bytes(&*store, number / 8, number % 8).unwrap()).collect();
        let cache = HostCache::new(store.clone(), 3 * expected[0].len() as u64, PolicyKind::Lru).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (cache, expected) = (&cache, &expected);
                scope.spawn(move || {
                    let mut state = thread;
                    for _ in 0..400 {
                        let number = u16::try_from(random(&mut state) % 16).unwrap();
                        let (layer, expert) = (number / 8, number % 8);
                        if random(&mut state).is_multiple_of(4) {
                            let weights = cache.fetch(LayerId(layer), ExpertId(expert)).unwrap();
                            std::thread::yield_now();
                            let check = &mut |parts: ProjectionBytes<'_>| {
                                assert!(parts.concat() == expected[usize::from(number)]);
                                Ok(())
                            };
                            weights.with_bytes(check).unwrap();
                        } else {
                            assert!(bytes(cache, layer, expert).unwrap() == expected[usize::from(number)]);
                        }
                    }
                });
            }
        });
        let total = total(&cache);
        assert_eq!(total.hits + total.loads + total.bypasses, 1600);
    }
}

#[test]
fn budgets_and_policies_that_cannot_be_are_refused() {
    let refusal = |bytes, policy| HostCache::new(host_store(SHAPE), bytes, policy).unwrap_err();
    assert!(matches!(refusal(EXPERT - 1, PolicyKind::Lru), OffloadError::Cache(_)));
    assert!(matches!(refusal(9 * EXPERT, PolicyKind::Belady), OffloadError::Cache(_)));
    let cache = HostCache::new(host_store(SHAPE), u64::MAX, PolicyKind::Lru).unwrap();
    assert_eq!(cache.capacity_bytes(), 24 * EXPERT);
    assert!(cache.fetch(LayerId(3), ExpertId(0)).is_err());
}
