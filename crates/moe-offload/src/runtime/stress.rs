//! Threads that share a bank over a store that fails, panics and dawdles.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use expert_cache::{ExpertKey, Partition, PolicyKind, PrefetcherKind, SlotId};
use moe_trace::{ExpertId, Geometry, LayerId, Phase};

use super::capacity::Capacity;
use super::offloaded::OffloadedExperts;
use super::options::OffloadOptions;
use super::slot_order::Place;
use super::transfers::Transfers;
use crate::bank::ExpertBank;
use crate::error::{OffloadError, Result};
use crate::expert::{ExpertShape, ExpertTypes, ExpertWeights, Lend, Lent};
use crate::report::LayerCounters;
use crate::resident::ResidentExperts;
use crate::routes::Routes;
use crate::slots::SlotGroup;
use crate::store::{ExpertStore, HostStore, RandomExperts};
use crate::weights::WeightType;

const SHAPE: ExpertShape = ExpertShape { layers: 4, experts: 12, hidden: 8, intermediate: 4 };
const THREADS: u64 = 4;
const CALLS: u64 = 1500;

/// The next number of a generator, below `limit`.
fn random(state: &mut u64, limit: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % limit
}

fn id(number: u64) -> u16 {
    u16::try_from(number).unwrap()
}

/// Random experts in host memory.
pub(super) fn host_store() -> HostStore {
    let experts = RandomExperts::new(SHAPE, WeightType::F32, 0).expect("a shape that models have");
    HostStore::from_store(&experts).expect("they are small")
}

/// A store whose loads fail, panic and dawdle at random.
#[derive(Debug)]
struct Moody {
    store: HostStore,
    calm: AtomicBool,
    state: AtomicU64,
    ended_well: AtomicU64,
}

impl ExpertStore for Moody {
    fn shape(&self) -> ExpertShape {
        SHAPE
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        const { &[ExpertTypes::alike(WeightType::F32); SHAPE.layers] }
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        self.store.fetch(layer, expert)
    }

    fn lend<'l>(&self, layer: LayerId, expert: ExpertId, lend: Lend<'l>) -> Result<Lent<'l>> {
        let mut state = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let calm = self.calm.load(Ordering::Relaxed);
        match random(&mut state, 100) {
            0..3 if !calm => return Err(OffloadError::NotOnHost),
            3 if !calm => std::panic::panic_any("a mood"),
            4..20 => std::thread::sleep(Duration::from_micros(random(&mut state, 300))),
            _ => {}
        }
        let lent = self.store.lend(layer, expert, lend)?;
        self.ended_well.fetch_add(1, Ordering::Relaxed);
        Ok(lent)
    }
}

/// A call with one to five tokens of one to three experts each.
fn call(bank: &dyn ExpertBank, state: &mut u64) -> Result<Vec<f32>> {
    let layer = LayerId(id(random(state, SHAPE.layers as u64)));
    let (tokens, top_k) = (1 + random(state, 5), 1 + random(state, 3));
    let favourite = random(state, 4);
    let experts = (0..tokens * top_k).map(|place| {
        let place = place % top_k;
        id((favourite * 3 + place * (1 + random(state, 3))) % SHAPE.experts as u64)
    });
    let experts: Vec<u16> = experts.collect();
    let (tokens, top_k) = (usize::try_from(tokens).unwrap(), usize::try_from(top_k).unwrap());
    let values = (0..tokens * SHAPE.hidden).map(|_| random(state, 2000) as f32 / 1000.0 - 1.0).collect();
    let hidden = Tensor::from_vec(values, (tokens, SHAPE.hidden), &Device::Cpu)?;
    let weights = Tensor::ones((tokens, top_k), DType::F32, &Device::Cpu)?;
    let phase = if tokens > 2 { Phase::Prefill } else { Phase::Decode };
    let output = bank.forward(layer, &hidden, &Routes::new(experts, weights, phase)?)?;
    Ok(output.flatten_all()?.to_vec1()?)
}

/// Serves random calls from several threads, and looks at everything afterwards.
fn stress(partition: Partition, slots: usize, threads: usize, seed: u64) {
    let store = host_store();
    let layer = |layer| (0..12).map(|expert| store.fetch(LayerId(layer), ExpertId(expert)).unwrap()).collect();
    let resident = ResidentExperts::new((0..4).map(layer).collect());
    let (calm, state, ended_well) = (AtomicBool::new(false), AtomicU64::new(seed), AtomicU64::new(0));
    let moody = Arc::new(Moody { store, calm, state, ended_well });
    let capacity = Capacity::PerPool(partition.pools().iter().map(|pool| slots * pool.layers().len()).collect());
    let options = OffloadOptions::new(capacity).partition(partition).policy(PolicyKind::LfuAged);
    let options = options.transfers(Transfers::threads(threads)).prefetch(PrefetcherKind::Markov, 1, 3);
    let bank = OffloadedExperts::new(moody.clone(), &Device::Cpu, options.prefill_quota(2)).unwrap();

    let failures: u64 = std::thread::scope(|scope| {
        let serve = |thread: u64| {
            let (bank, resident) = (&bank, &resident);
            scope.spawn(move || {
                let mut state = seed * 100 + thread;
                let mut failures = 0;
                for number in 0..CALLS {
                    let mut again = state;
                    match call(bank, &mut state) {
                        Ok(output) => assert_eq!(output, call(resident, &mut again).unwrap()),
                        Err(OffloadError::Load { .. } | OffloadError::LoadPanicked { .. }) => failures += 1,
                        Err(error) => panic!("{error}"),
                    }
                    if number % 50 == 0 {
                        bank.sequence_end().unwrap();
                    }
                }
                failures
            })
        };
        let threads: Vec<_> = (0..THREADS).map(serve).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(failures > 0, "a store like that fails somebody");

    // What is left to prefetch is prefetched, and then nothing is left to do.
    let mut state = bank.engine().state.lock().unwrap();
    while let Some(job) = state.order.begin(true) {
        drop(state);
        bank.engine().load(&job);
        state = bank.engine().state.lock().unwrap();
    }
    while state.order.is_busy() {
        state = bank.engine().done.wait(state).unwrap();
    }
    state.order.validate();
    state.order.assert_idle();
    drop(state);

    let counters = bank.counters().unwrap();
    let sum = |of: &dyn Fn(&LayerCounters) -> u64| counters.iter().map(of).sum::<u64>();
    assert_eq!(sum(&|layer| layer.total().failed_calls), failures);
    assert_eq!(sum(&|layer| layer.total().counts.requests), THREADS * CALLS - failures);
    assert_eq!(sum(&|layer| layer.total().counts.bypasses + layer.total().counts.skips), 0);
    let bytes = sum(&|layer| layer.total().loaded_bytes + layer.prefetch.loaded_bytes);
    let expert_bytes = SHAPE.expert_bytes(WeightType::F32) as u64;
    assert_eq!(bytes, moody.ended_well.load(Ordering::Relaxed) * expert_bytes);
    for layer in &counters {
        let counts = layer.prefetch.counts;
        assert!(counts.issued >= counts.useful + counts.late + counts.useless, "{counts:?}");
    }

    // What a slot is said to hold, it holds.
    let hidden = Tensor::ones((1, SHAPE.hidden), DType::F32, &Device::Cpu).unwrap();
    let mut held = 0;
    let engine = bank.engine();
    for (pool, (layers, &capacity)) in engine.pools.iter().zip(bank.capacities()).enumerate() {
        for slot in (0..).map(SlotId).take(capacity) {
            let Some(key) = engine.state.lock().unwrap().order.holds(Place { pool, slot }) else { continue };
            let (layer, expert) = layers.expert(key).unwrap();
            let group = SlotGroup { slot, rows: &[0] };
            let found = engine.slots[pool].forward(&hidden, &[group]).unwrap();
            let expected = moody.fetch(layer, expert).unwrap().forward(&hidden).unwrap();
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&found[0]), values(&expected), "{layer}, {expert}");
            held += 1;
        }
    }
    assert!(held > 0);

    // No slot is lost: as many experts as there are slots are resident together.
    moody.calm.store(true, Ordering::Relaxed);
    let mut state = engine.state.lock().unwrap();
    for (pool, &capacity) in bank.capacities().iter().enumerate() {
        let universe = engine.pools[pool].universe();
        let wanted = moe_trace::ExpertSet::from_members(universe, (0..universe).rev().take(capacity));
        let plan = state.caches[pool].request(&wanted).unwrap();
        let mut slots: Vec<SlotId> = plan.hits().iter().map(|hit| hit.slot).collect();
        slots.extend(plan.loads().iter().map(|load| load.slot));
        slots.sort_unstable();
        assert_eq!(slots, (0..).map(SlotId).take(capacity).collect::<Vec<_>>());
        assert_eq!(plan.waves().count(), 1);
        assert_eq!(state.caches[pool].resident().len(), capacity);
        assert!(state.caches[pool].resident().contains(ExpertKey(0).index()) == wanted.contains(0));
    }
}

/// Runs a case that must end.
fn watched(case: impl FnOnce() + Send + 'static) {
    let (ended, end) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        case();
        let _ = ended.send(());
    });
    match end.recv_timeout(Duration::from_secs(600)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("deadlock"),
        _ => thread.join().unwrap(),
    }
}

fn geometry() -> Geometry {
    Geometry::decoder(SHAPE.layers, SHAPE.experts, 3).unwrap()
}

#[test]
fn a_pool_a_layer_with_three_threads() {
    watched(|| stress(Partition::per_layer(&geometry()), 4, 3, 1));
}

#[test]
fn a_small_pool_of_all_layers_with_one_thread() {
    watched(|| stress(Partition::global(&geometry()), 1, 1, 2));
}

#[test]
fn pools_of_two_layers_without_threads() {
    watched(|| stress(Partition::grouped(&geometry(), 2).unwrap(), 2, 0, 3));
}

#[test]
fn one_slot_a_layer_with_two_threads() {
    watched(|| stress(Partition::per_layer(&geometry()), 1, 2, 4));
}
