//! Timelines worked by hand, and beside one that goes second by second.

use std::collections::VecDeque;
use std::sync::Arc;

use moe_trace::{Geometry, MemoryTrace, Phase, SequenceBuf};
use proptest::prelude::*;

use super::*;
use crate::{
    EvictionPolicy, ExpertCache, ExpertKey, Lru, Oversize, Partition, PolicyKind, Pool, PrefetcherKind, Requests,
    Served, Simulation,
};

fn linear(call_seconds: f64, seconds_each: f64) -> Linear {
    Linear { call_seconds, seconds_each }
}

fn costs(overlap: Overlap, load: f64) -> CostModel {
    CostModel {
        load_seconds: vec![load],
        device_expert: linear(1.0, 0.5),
        host_expert: linear(6.0, 1.0),
        plan: linear(0.0, 0.0),
        dense: linear(2.0, 0.25),
        head: linear(3.0, 0.0),
        overlap,
    }
}

/// A prefill of two tokens that both want experts 0..wanted; two slots, expert 0 is resident.
fn pass(costs: CostModel, oversize: Oversize, who: WhileLoading, wanted: u16) -> PhaseSpeed {
    let geometry = Geometry::decoder(1, 4, usize::from(wanted)).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone());
    let experts = (0..wanted).chain(0..wanted).collect();
    trace.push(SequenceBuf::from_experts(&geometry, experts, Phase::Prefill).unwrap()).unwrap();
    let mut cache = ExpertCache::new(Lru::new(4), 4, 2, oversize).unwrap();
    cache.warm(&[ExpertKey(0)]).unwrap();
    let mut simulation = Simulation::new(Pool::model(&geometry), cache).unwrap();
    let mut timeline = Timeline::new(costs, simulation.pools()).unwrap().while_loading(who);
    simulation
        .observe(&trace, |served| {
            timeline.serve(served);
        })
        .unwrap();
    timeline.speed().prefill.clone()
}

#[test]
fn one_after_the_other_by_hand() {
    // Dense 2 + 2 * 0.25, head 3; each expert 1 + 2 * 0.5; expert 1 loads for 4, then 2 and 3 in waves of two.
    let speed = pass(costs(Overlap::None, 4.0), Oversize::Waves, WhileLoading::Device, 4);
    assert_eq!(speed.seconds, 5.5 + 4.0 * 2.0 + 3.0 * 4.0);
    assert_eq!((speed.compute_seconds, speed.exposed_seconds, speed.hidden_seconds), (13.5, 12.0, 0.0));
    // Two of the four are bypassed: 6 + 2 each. Keeping the books takes 1, and 0.5 for each of four experts.
    let mut with_books = costs(Overlap::None, 4.0);
    with_books.plan = linear(1.0, 0.5);
    let speed = pass(with_books, Oversize::Bypass, WhileLoading::Device, 4);
    assert_eq!((speed.seconds, speed.host_seconds), (5.5 + 2.0 * 2.0 + 4.0 + 3.0 + 2.0 * 8.0, 3.0 + 16.0));
}

#[test]
fn side_by_side_by_hand() {
    // The resident expert is done at 2, the loaded one arrives at 4 and is done at 6. Second wave: loads arrive at 4
    // and 8, done at 6 and 10.
    let speed = pass(costs(Overlap::Copies, 4.0), Oversize::Waves, WhileLoading::Device, 4);
    assert_eq!(speed.seconds, 5.5 + 6.0 + 10.0);
    assert_eq!((speed.compute_seconds, speed.exposed_seconds, speed.hidden_seconds), (13.5, 8.0, 4.0));
    // The host needs 16 beside the 6 of the device.
    let speed = pass(costs(Overlap::Copies, 4.0), Oversize::Bypass, WhileLoading::Device, 4);
    assert_eq!((speed.seconds, speed.host_seconds), (5.5 + 16.0, 10.0));
}

#[test]
fn the_host_computes_what_takes_long_to_load() {
    // The expert arrives at 4 and is done at 6, the host would be done at 8.
    let speed = pass(costs(Overlap::Copies, 4.0), Oversize::Waves, WhileLoading::Sooner, 2);
    assert_eq!((speed.seconds, speed.exposed_seconds, speed.host_seconds), (5.5 + 6.0, 2.0, 0.0));
    // It arrives at 7 and is done at 9: the host, from 2 to 8 alone, and the copy beside it.
    let speed = pass(costs(Overlap::Copies, 7.0), Oversize::Waves, WhileLoading::Sooner, 2);
    assert_eq!((speed.seconds, speed.exposed_seconds, speed.host_seconds), (5.5 + 8.0, 0.0, 6.0));
    assert_eq!(speed.hidden_seconds, 7.0);
    // Two in turn: the host is done with one at 8, and would be with the other at 16; that one arrives at 7.
    let speed = pass(costs(Overlap::Copies, 7.0), Oversize::Bypass, WhileLoading::Host, 2);
    assert_eq!(speed.seconds, 5.5 + 8.0);
}

/// One token of two layers with a slot each, experts 0 and 1, foreseen one layer ahead.
fn foreseen(overlap: Overlap, expert_seconds: f64) -> (Speed, u64) {
    let geometry = Geometry::decoder(2, 2, 1).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone());
    trace.push(SequenceBuf::from_experts(&geometry, vec![0, 1], Phase::Decode).unwrap()).unwrap();
    let future = Arc::new(Requests::from_source(&trace, &Pool::model(&geometry)).unwrap());
    let oracle = PrefetcherKind::Oracle { accuracy: 1.0 }.build(&geometry, 1, Some(&future), 0).unwrap().unwrap();
    let caches = (0..2).map(|_| ExpertCache::new(Lru::new(2), 2, 1, Oversize::Waves).unwrap()).collect();
    let simulation = Simulation::of_pools(Partition::per_layer(&geometry).into_pools(), caches).unwrap();
    let mut simulation = simulation.with_prefetching(oracle, 1);
    let mut costs = CostModel::loads(vec![4.0; 2], overlap);
    costs.device_expert = linear(expert_seconds, 0.0);
    let mut timeline = Timeline::new(costs, simulation.pools()).unwrap();
    simulation
        .observe(&trace, |served| {
            timeline.serve(served);
        })
        .unwrap();
    (timeline.speed().clone(), timeline.late_prefetches())
}

#[test]
fn prefetches_by_hand() {
    // Expert 0 is loaded until 4 and computed until 7; expert 1 is on its way from 4 to 8, and computed until 11.
    let (speed, late) = foreseen(Overlap::Copies, 3.0);
    assert_eq!((speed.decode.seconds, speed.decode.exposed_seconds, late), (11.0, 5.0, 1));
    assert_eq!(speed.decode.hidden_seconds, 3.0);
    // Where an expert takes 5, it is there in time.
    let (speed, late) = foreseen(Overlap::Copies, 5.0);
    assert_eq!((speed.decode.seconds, speed.decode.exposed_seconds, late), (14.0, 4.0, 0));
    // Nothing runs beside.
    let (speed, late) = foreseen(Overlap::None, 3.0);
    assert_eq!((speed.decode.seconds, speed.decode.exposed_seconds, late), (14.0, 8.0, 0));
}

#[test]
fn impossible_costs_are_refused() {
    let pools = |layers| Partition::per_layer(&Geometry::decoder(layers, 4, 1).unwrap()).into_pools();
    let refused = |change: fn(&mut CostModel)| {
        let mut costs = costs(Overlap::None, 1.0);
        change(&mut costs);
        Timeline::new(costs, &pools(1)).unwrap_err().to_string()
    };
    assert_eq!(refused(|costs| costs.load_seconds[0] = -1.0), "load_seconds is -1, it must be 0 to 1e12 seconds");
    assert_eq!(
        refused(|costs| costs.head.seconds_each = f64::NAN),
        "head.seconds_each is NaN, it must be 0 to 1e12 seconds"
    );
    assert!(refused(|costs| costs.head.seconds_each = 1e308).ends_with("it must be 0 to 1e12 seconds"));
    assert_eq!(refused(|costs| costs.load_seconds.clear()), "there are no layers");
    let error = Timeline::new(costs(Overlap::None, 1.0), &pools(2)).unwrap_err().to_string();
    assert_eq!(error, "the costs are of 1 layers, the model has 2");
    let error = Timeline::new(costs(Overlap::None, 1.0), &pools(2)[1..]).unwrap_err().to_string();
    assert_eq!(error, "layer 0 is in no pool");
}

/// A model, a trace and costs, all of whole seconds.
#[derive(Clone, Debug)]
struct Case {
    layers: usize,
    tokens: Vec<u16>,
    prefill: usize,
    capacity: usize,
    policy: PolicyKind,
    prefetcher: PrefetcherKind,
    global: bool,
    load: u32,
    device: u32,
    dense: u32,
    head: u32,
}

fn case() -> impl Strategy<Value = Case> {
    let kinds = (
        prop_oneof![Just(PolicyKind::Lru), Just(PolicyKind::Lfu), Just(PolicyKind::Belady)],
        prop_oneof![
            Just(PrefetcherKind::None),
            Just(PrefetcherKind::PreviousToken),
            Just(PrefetcherKind::Markov),
            Just(PrefetcherKind::Oracle { accuracy: 0.7 }),
        ],
        any::<bool>(),
    );
    let seconds = (1u32..6, 0u32..4, 0u32..4, 0u32..3);
    (1usize..4, 1usize..5, 0usize..6, proptest::collection::vec(0u16..5, 2 * 3 * 12), kinds, seconds).prop_map(
        |(layers, capacity, prefill, mut tokens, (policy, prefetcher, global), (load, device, dense, head))| {
            tokens.truncate(tokens.len() / (2 * layers) * 2 * layers);
            // The two experts of a token differ.
            tokens.chunks_mut(2).for_each(|pair| pair[1] = (pair[0] + 1 + pair[1] % 4) % 5);
            Case { layers, tokens, prefill, capacity, policy, prefetcher, global, load, device, dense, head }
        },
    )
}

impl Case {
    fn costs(&self, overlap: Overlap) -> CostModel {
        let mut costs = CostModel::loads(vec![f64::from(self.load); self.layers], overlap);
        costs.device_expert = linear(0.0, f64::from(self.device));
        costs.host_expert = linear(2.0, 1.0);
        costs.dense = linear(f64::from(self.dense), 0.0);
        costs.head = linear(f64::from(self.head), 0.0);
        costs
    }

    /// Shows every request to an observer; returns how many experts plans loaded.
    fn serve(&self, observer: impl FnMut(&Served<'_>)) -> u64 {
        let geometry = Geometry::decoder(self.layers, 5, 2).unwrap();
        let mut trace = MemoryTrace::new(geometry.clone());
        let mut sequence = SequenceBuf::from_experts(&geometry, self.tokens.clone(), Phase::Decode).unwrap();
        sequence.phases.iter_mut().take(self.prefill).for_each(|phase| *phase = Phase::Prefill.code());
        trace.push(sequence).unwrap();
        let partition = if self.global { Partition::global(&geometry) } else { Partition::per_layer(&geometry) };
        let cache = |pool: &Pool| {
            let future = Arc::new(Requests::from_source(&trace, pool).unwrap());
            let policy: Box<dyn EvictionPolicy> =
                self.policy.build(pool.shape(), self.capacity, Some(&future)).unwrap();
            ExpertCache::new(policy, pool.universe(), self.capacity, Oversize::Waves).unwrap()
        };
        let caches = partition.pools().iter().map(cache).collect();
        let mut simulation = Simulation::of_pools(partition.into_pools(), caches).unwrap();
        let future = Arc::new(Requests::from_source(&trace, &Pool::model(&geometry)).unwrap());
        if let Some(prefetcher) = self.prefetcher.build(&geometry, 1, Some(&future), 7).unwrap() {
            simulation = simulation.with_prefetching(prefetcher, 2);
        }
        simulation.observe(&trace, observer).unwrap();
        simulation.counts().iter().map(|counts| counts.total().loads).sum()
    }

    fn time(&self, overlap: Overlap, who: WhileLoading) -> Timeline {
        let geometry = Geometry::decoder(self.layers, 5, 2).unwrap();
        let partition = if self.global { Partition::global(&geometry) } else { Partition::per_layer(&geometry) };
        let mut timeline = Timeline::new(self.costs(overlap), partition.pools()).unwrap().while_loading(who);
        self.serve(|served| {
            timeline.serve(served);
        });
        timeline
    }

    fn seconds(&self, overlap: Overlap, who: WhileLoading) -> f64 {
        let speed = self.time(overlap, who).speed().clone();
        speed.prefill.seconds + speed.decode.seconds
    }
}

/// A clock that goes second by second.
#[derive(Default)]
struct Ticks {
    now: u32,
    exposed: u32,
    late: u64,
    running: Option<((usize, ExpertKey), u32)>,
    demanded: VecDeque<(usize, ExpertKey)>,
    foreseen: VecDeque<(usize, ExpertKey)>,
}

impl Ticks {
    fn tick(&mut self, load: u32) {
        if self.running.is_none() {
            let next = self.demanded.pop_front().or_else(|| self.foreseen.pop_front());
            self.running = next.map(|expert| (expert, self.now + load));
        }
        self.now += 1;
        self.running = self.running.filter(|&(_, end)| end > self.now);
    }

    fn compute(&mut self, seconds: u32, load: u32) {
        (0..seconds).for_each(|_| self.tick(load));
    }

    fn is_under_way(&self, expert: (usize, ExpertKey)) -> bool {
        self.demanded.contains(&expert) || self.running.is_some_and(|(running, _)| running == expert)
    }

    fn serve(&mut self, case: &Case, served: &Served<'_>) {
        self.compute(case.dense, case.load);
        let pool = served.pool;
        let (mut here, mut late) = (Vec::new(), Vec::new());
        for hit in served.plan.hits() {
            let expert = (pool, hit.key);
            if let Some(place) = self.foreseen.iter().position(|&foreseen| foreseen == expert) {
                self.foreseen.remove(place);
                self.demanded.push_back(expert);
                late.push(expert);
            } else if self.is_under_way(expert) {
                late.insert(0, expert);
            } else {
                here.push(expert);
            }
        }
        self.late += late.len() as u64;
        let mut experts = here;
        experts.append(&mut late);
        let mut evicted: Vec<ExpertKey> = served.plan.evictions().iter().map(|eviction| eviction.key).collect();
        self.foreseen.retain(|&(of, key)| of != pool || !evicted.contains(&key));
        evicted.clear();
        for prefetched in served.prefetches() {
            for eviction in prefetched.evictions {
                self.foreseen.retain(|&expert| expert != (prefetched.pool, eviction.key));
            }
            self.foreseen.push_back((prefetched.pool, prefetched.load.key));
        }
        for wave in served.plan.waves() {
            let loads = wave.iter().map(|load| (pool, load.key));
            self.demanded.extend(loads.clone());
            experts.extend(loads);
            for expert in experts.drain(..) {
                while self.is_under_way(expert) {
                    self.tick(case.load);
                    self.exposed += 1;
                }
                self.compute(case.device * served.request.uses(expert.1), case.load);
            }
        }
        if served.request.layer().index() + 1 == case.layers {
            self.compute(case.head, case.load);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn equals_going_second_by_second(case in case()) {
        let timeline = case.time(Overlap::Copies, WhileLoading::Device);
        let mut ticks = Ticks::default();
        case.serve(|served| ticks.serve(&case, served));
        let Speed { prefill, decode } = timeline.speed();
        prop_assert_eq!(prefill.seconds + decode.seconds, f64::from(ticks.now));
        prop_assert_eq!(prefill.exposed_seconds + decode.exposed_seconds, f64::from(ticks.exposed));
        prop_assert_eq!(timeline.late_prefetches(), ticks.late);
    }

    #[test]
    fn overlap_never_makes_it_slower(case in case()) {
        prop_assert!(case.seconds(Overlap::Copies, WhileLoading::Device) <= case.seconds(Overlap::None, WhileLoading::Device));
    }

    #[test]
    fn every_second_of_copies_is_exposed_or_hidden(case in case(), overlap in prop_oneof![Just(Overlap::None), Just(Overlap::Copies)]) {
        let case = Case { prefetcher: PrefetcherKind::None, ..case };
        let speed = case.time(overlap, WhileLoading::Device).speed().clone();
        let loads = case.serve(|_| ());
        let [prefill, decode] = [speed.prefill, speed.decode].map(|speed| speed.exposed_seconds + speed.hidden_seconds);
        prop_assert_eq!(prefill + decode, (loads * u64::from(case.load)) as f64);
    }

    #[test]
    fn a_faster_link_never_makes_it_slower(case in case(), overlap in prop_oneof![Just(Overlap::None), Just(Overlap::Copies)]) {
        let slow = Case { prefetcher: PrefetcherKind::None, ..case };
        let fast = Case { load: slow.load - 1, ..slow.clone() };
        prop_assert!(fast.seconds(overlap, WhileLoading::Device) <= slow.seconds(overlap, WhileLoading::Device));
    }

    #[test]
    fn nothing_is_exposed_where_the_host_computes_every_miss(case in case()) {
        let case = Case { prefetcher: PrefetcherKind::None, capacity: 5, ..case };
        let speed = case.time(Overlap::Copies, WhileLoading::Host).speed().clone();
        prop_assert_eq!(speed.prefill.exposed_seconds, 0.0);
        prop_assert!(speed.decode.hidden_seconds >= 0.0);
    }
}
