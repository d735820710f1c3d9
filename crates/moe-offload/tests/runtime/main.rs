//! The runtime does what the simulator counts: pools, policies, misses, quotas, prefetchers, batches, threads.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod callers;
#[path = "../common/mod.rs"]
mod common;
mod stores;

use std::sync::Arc;

use candle_core::Device;
use common::{SHAPE, geometry, host_store, random, resident, serve, trace};
use expert_cache::{
    CostModel, ExpertCache, Linear, MissPolicy, Overlap, Oversize, Partition, PolicyKind, Pool, PrefetchCounts,
    PrefetcherKind, Requests, ResidentProfile, Serving, Simulation,
};
use moe_offload::{
    BankReport, Capacity, Exactness, ExpertBank, ExpertShape, ExpertStore, ExpertTypes, ExpertWeights, MissSeconds,
    OffloadOptions, OffloadedExperts, Result, Transfers, WeightType,
};
use moe_trace::{ExpertId, Geometry, LayerId, MemoryTrace};

/// One way to serve a trace.
#[derive(Clone, Debug)]
struct Case {
    partition: Partition,
    /// Slots of each pool.
    slots: Vec<usize>,
    policy: PolicyKind,
    oversize: Oversize,
    misses: MissPolicy,
    quota: Option<u64>,
    prefetcher: PrefetcherKind,
    ahead: usize,
    per_request: usize,
    serving: Serving,
    transfers: Transfers,
}

/// Hosts are worth their while for few tokens.
fn costs() -> CostModel {
    let mut costs = CostModel::loads(vec![2.0, 1.0, 3.0], Overlap::None);
    costs.host_expert = Linear { call_seconds: 0.5, seconds_each: 0.8 };
    costs
}

impl Case {
    /// A case that a seed chooses.
    fn random(state: &mut u64) -> Case {
        let mut choose = |count: usize| random(state) % count;
        let partition = match choose(3) {
            0 => Partition::per_layer(&geometry()),
            1 => Partition::grouped(&geometry(), 2).unwrap(),
            _ => Partition::global(&geometry()),
        };
        let slots = partition.pools().iter().map(|pool| 1 + choose(pool.universe())).collect();
        let kinds = PolicyKind::all();
        let prefetchers = [
            PrefetcherKind::None,
            PrefetcherKind::PreviousToken,
            PrefetcherKind::NextLayer,
            PrefetcherKind::Markov,
            PrefetcherKind::History { passes: 8 },
            PrefetcherKind::Oracle { accuracy: 0.7 },
        ];
        Case {
            slots,
            policy: kinds[choose(kinds.len())],
            oversize: [Oversize::Waves, Oversize::Bypass][choose(2)],
            misses: match choose(6) {
                0 => MissPolicy::Host,
                1 => MissPolicy::Cheaper(Arc::new(MissSeconds::new(costs(), SHAPE.layers).unwrap())),
                _ => MissPolicy::Load,
            },
            quota: [None, None, Some(0), Some(2)][choose(4)],
            prefetcher: prefetchers[choose(prefetchers.len())],
            ahead: 1 + choose(3),
            per_request: 1 + choose(4),
            serving: Serving::new(1 + choose(3), 1 + choose(3)).unwrap(),
            transfers: Transfers::threads([0, 1, 3][choose(3)]),
            partition,
        }
    }

    fn future(&self, trace: &MemoryTrace, pool: &Pool) -> Arc<Requests> {
        Arc::new(Requests::served(trace, pool, self.serving).unwrap())
    }

    fn prefetching(&self, trace: &MemoryTrace) -> Option<Box<dyn expert_cache::Prefetcher>> {
        let future = self.future(trace, &Pool::model(&geometry()));
        self.prefetcher.build(&geometry(), self.ahead, Some(&future), 5).unwrap()
    }

    fn options<'a>(&'a self, trace: &'a MemoryTrace) -> OffloadOptions<'a> {
        let mut options = OffloadOptions::new(Capacity::PerPool(self.slots.clone()))
            .partition(self.partition.clone())
            .policy_with(|pool, slots| self.policy.build(pool.shape(), slots, Some(&self.future(trace, pool))))
            .oversize(self.oversize)
            .misses(self.misses.clone())
            .transfers(self.transfers);
        if let Some(quota) = self.quota {
            options = options.prefill_quota(quota);
        }
        match self.prefetching(trace) {
            Some(prefetcher) => options.prefetch_with(prefetcher, self.per_request),
            None => options,
        }
    }

    fn simulation(&self, trace: &MemoryTrace) -> Simulation<Box<dyn expert_cache::EvictionPolicy>> {
        let cache = |(pool, &slots): (&Pool, &usize)| {
            let policy = self.policy.build(pool.shape(), slots, Some(&self.future(trace, pool))).unwrap();
            let cache = ExpertCache::new(policy, pool.universe(), slots, self.oversize).unwrap();
            let cache = cache.with_misses(self.misses.clone());
            match self.quota {
                Some(quota) => cache.with_prefill_quota(quota).unwrap(),
                None => cache,
            }
        };
        let pools = self.partition.pools();
        let caches = pools.iter().zip(&self.slots).map(cache).collect();
        let simulation = Simulation::of_pools(pools.to_vec(), caches).unwrap().with_serving(self.serving);
        match self.prefetching(trace) {
            Some(prefetcher) => simulation.with_prefetching(prefetcher, self.per_request),
            None => simulation,
        }
    }
}

#[test]
fn whatever_is_chosen_bits_are_the_residents_and_counts_the_simulators() {
    let store = host_store(SHAPE);
    let all = resident(&*store);
    let mut state = 1;
    let (mut late, mut issued) = (0, 0);
    for number in 0..120 {
        let case = Case::random(&mut state);
        let trace = trace(number % 7, 4, 24);
        let bank = OffloadedExperts::new(store.clone(), &Device::Cpu, case.options(&trace)).unwrap();
        let expected = serve(&all, &trace, case.serving).unwrap();
        assert_eq!(serve(&bank, &trace, case.serving).unwrap(), expected, "case {number}: {case:?}");
        let mut simulation = case.simulation(&trace);
        simulation.run(&trace).unwrap();
        let counters = bank.counters().unwrap();
        let counts: Vec<_> = counters.iter().map(|layer| layer.counts()).collect();
        assert_eq!(counts, simulation.counts(), "case {number}: {case:?}");
        let mut simulated = simulation.prefetch_counts();
        simulated.resize(SHAPE.layers, PrefetchCounts::default());
        for (layer, simulated) in counters.iter().zip(&simulated) {
            let ours = layer.prefetch.counts;
            late += ours.late;
            issued += ours.issued;
            // Only the clock tells what is late, and without threads nothing is.
            assert!(case.transfers != Transfers::Inline || ours.late == 0);
            let ours = PrefetchCounts { useful: ours.useful + ours.late, late: 0, ..ours };
            assert_eq!(&ours, simulated, "case {number}: {case:?}");
            let loads = layer.total().counts.loads * SHAPE.expert_bytes(WeightType::F32) as u64;
            assert_eq!(layer.total().loaded_bytes, loads, "case {number}: {case:?}");
            assert_eq!((layer.total().failed_loads, layer.total().reloads, layer.prefetch.failed_loads), (0, 0, 0));
        }
    }
    assert!(issued > 500, "{issued} prefetches, {late} of them late");
}

#[test]
fn the_report_is_a_json_of_the_counters() {
    let store = host_store(SHAPE);
    let trace = trace(3, 2, 30);
    let options = OffloadOptions::slots(3).prefetch(PrefetcherKind::PreviousToken, 1, 2);
    let bank = OffloadedExperts::new(store, &Device::Cpu, options).unwrap();
    serve(&bank, &trace, Serving::default()).unwrap();
    let report = bank.report().unwrap();
    assert_eq!(serde_json::from_str::<BankReport>(&serde_json::to_string(&report).unwrap()).unwrap(), report);
    let counters = bank.counters().unwrap();
    for (layer, report) in counters.iter().zip(&report.layers) {
        assert_eq!((layer.prefill, layer.decode), (report.prefill.counters, report.decode.counters));
        assert_eq!(layer.prefetch, report.prefetch);
        let decode = &report.decode;
        assert_eq!(decode.load.samples, decode.counters.counts.loads);
        assert_eq!(decode.stall.samples, decode.counters.counts.requests);
        assert!(decode.load.p50_seconds > 0.0 && decode.load.p50_seconds <= decode.load.p99_seconds);
        assert!(decode.load.p99_seconds <= decode.load.max_seconds);
        assert_eq!(report.prefetch_load.samples, layer.prefetch.counts.issued - layer.cancelled);
    }
    let loads: u64 = counters.iter().map(|layer| layer.decode.counts.loads).sum();
    assert_eq!(report.total.decode.counters.counts.loads, loads);
    assert_eq!((report.slots, report.slot_bytes), (vec![3; 3], 9 * 384));
}

#[test]
fn a_warm_bank_begins_where_the_other_ended() {
    let store = host_store(SHAPE);
    let trace = trace(5, 2, 20);
    for (partition, transfers) in [
        (Partition::per_layer(&geometry()), 0),
        (Partition::global(&geometry()), 0),
        (Partition::global(&geometry()), 2),
    ] {
        let options = |partition| {
            let options = OffloadOptions::slots(4).partition(partition).policy(PolicyKind::Lfu);
            options.transfers(Transfers::threads(transfers))
        };
        let cold = OffloadedExperts::new(store.clone(), &Device::Cpu, options(partition.clone())).unwrap();
        let expected = serve(&cold, &trace, Serving::default()).unwrap();
        let json = cold.resident_profile().unwrap().to_json().unwrap();
        let profile = || ResidentProfile::from_json(&json).unwrap();

        let warm = options(partition.clone()).warm(profile());
        let warm = OffloadedExperts::new(store.clone(), &Device::Cpu, warm).unwrap();
        assert_eq!(warm.resident_profile().unwrap(), profile());
        assert_eq!(serve(&warm, &trace, Serving::default()).unwrap(), expected);
        // A simulation that starts from the same residents counts the same.
        let pools = partition.pools();
        let cache = |pool: &Pool| {
            let policy = PolicyKind::Lfu.build(pool.shape(), 4, None).unwrap();
            ExpertCache::new(policy, pool.universe(), 4, Oversize::Waves).unwrap()
        };
        let mut caches: Vec<_> = pools.iter().map(cache).collect();
        profile().warm(pools, &mut caches).unwrap();
        let mut simulation = Simulation::of_pools(pools.to_vec(), caches).unwrap();
        simulation.run(&trace).unwrap();
        let counters = warm.counters().unwrap();
        assert_eq!(counters.iter().map(|layer| layer.counts()).collect::<Vec<_>>(), simulation.counts());
        assert!(counters.iter().all(|layer| layer.total().reloads == 0));
    }
    // A profile of another model, or of other pools, is refused.
    let other = Partition::global(&Geometry::decoder(3, 8, 1).unwrap());
    let profile = OffloadedExperts::new(store.clone(), &Device::Cpu, OffloadOptions::slots(4).partition(other));
    let profile = profile.unwrap().resident_profile().unwrap();
    let options = OffloadOptions::slots(4).partition(Partition::global(&geometry())).warm(profile);
    let error = OffloadedExperts::new(store, &Device::Cpu, options).unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the profile is of another model");
}

#[test]
fn choices_that_do_not_go_together_are_refused() {
    let store = host_store(SHAPE);
    let refusal = |options: OffloadOptions<'_>| {
        OffloadedExperts::new(store.clone(), &Device::Cpu, options).unwrap_err().to_string()
    };
    let narrow = Partition::global(&Geometry::decoder(3, 4, 2).unwrap());
    assert_eq!(
        refusal(OffloadOptions::slots(2).partition(narrow)),
        "the pools are of a model of 3 layers of 4 experts, the store has 3 of 8"
    );
    for exactness in [Exactness::Strict, Exactness::Tolerant] {
        let skip = OffloadOptions::slots(2).misses(MissPolicy::Skip { share: 0.1 }).exactness(exactness);
        assert_eq!(refusal(skip), "skipping experts changes what the model computes, only a simulation tries it");
    }
    assert_eq!(
        refusal(OffloadOptions::new(Capacity::PerPool(vec![2, 2]))),
        "there are capacities for 2 pools, the bank has 3"
    );
    let error = MissSeconds::new(costs(), 4).unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the costs are of 3 layers, the model has 4");
}

/// The layers of two models, one after the other.
#[derive(Debug)]
struct Both([Arc<dyn ExpertStore>; 2], Vec<ExpertTypes>);

impl ExpertStore for Both {
    fn shape(&self) -> ExpertShape {
        ExpertShape { layers: self.0.iter().map(|store| store.shape().layers).sum(), ..self.0[0].shape() }
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        &self.1
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        let first = self.0[0].shape().layers;
        match layer.index().checked_sub(first) {
            Some(layer) => self.0[1].fetch(LayerId(layer.try_into().unwrap()), expert),
            None => self.0[0].fetch(layer, expert),
        }
    }
}

/// The layers of a bank from one on.
struct Shifted<'a>(&'a OffloadedExperts, u16);

impl ExpertBank for Shifted<'_> {
    fn forward(
        &self,
        layer: LayerId,
        hidden: &candle_core::Tensor,
        routes: &moe_offload::Routes,
    ) -> Result<candle_core::Tensor> {
        self.0.forward(LayerId(self.1 + layer.0), hidden, routes)
    }
}

#[test]
fn two_models_share_one_pool_of_bytes() {
    let stores = [host_store(SHAPE), host_store(ExpertShape { layers: 2, ..SHAPE })];
    let types = stores.iter().flat_map(|store| store.weight_types().to_vec()).collect();
    let both = Arc::new(Both(stores.clone(), types));
    let pool = Partition::global(&Geometry::decoder(5, SHAPE.experts, common::TOP_K).unwrap());
    let expert = SHAPE.expert_bytes(WeightType::F32) as u64;
    let options = OffloadOptions::new(Capacity::Bytes(9 * expert + 1)).partition(pool).transfers(Transfers::threads(1));
    let bank = OffloadedExperts::new(both, &Device::Cpu, options).unwrap();
    assert_eq!(bank.capacities(), [9]);
    let traces = [trace(1, 3, 30), {
        let narrow = Geometry::decoder(2, SHAPE.experts, common::TOP_K).unwrap();
        let mut trace = MemoryTrace::new(narrow);
        trace
            .push(moe_trace::SequenceBuf {
                experts: (0..160u16).map(|at| (at * 5 + at / 4) % 8).collect(),
                weights: Some(vec![0.5; 160]),
                phases: vec![moe_trace::Phase::Decode.code(); 40],
                ..Default::default()
            })
            .unwrap();
        trace
    }];
    // Both at the same time, each on its thread.
    std::thread::scope(|scope| {
        for ((store, trace), first) in stores.iter().zip(&traces).zip([0, 3]) {
            let bank = &bank;
            scope.spawn(move || {
                let expected = serve(&resident(&**store), trace, Serving::default()).unwrap();
                assert_eq!(serve(&Shifted(bank, first), trace, Serving::default()).unwrap(), expected);
            });
        }
    });
    let counters = bank.counters().unwrap();
    assert!(counters.iter().all(|layer| layer.total().counts.loads > 0));
}
