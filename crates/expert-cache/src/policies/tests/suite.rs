//! Tests that every policy passes, and exhaustive optima.

use std::collections::BTreeSet;
use std::sync::Arc;

use moe_trace::{Geometry, LayerId, MemoryTrace, Phase, SequenceBuf};
use proptest::prelude::*;

use crate::cache::{ExpertCache, Oversize};
use crate::key::ExpertKey;
use crate::plan::Plan;
use crate::policies::PolicyKind;
use crate::policies::kind::for_each_policy;
use crate::policy::{EvictionPolicy, PoolShape};
use crate::pool::Pool;
use crate::request::RequestBuffer;
use crate::requests::Requests;

const ONE_LAYER: PoolShape = PoolShape { layers: 1, experts: 12 };
const THREE_LAYERS: PoolShape = PoolShape { layers: 3, experts: 4 };

/// A trace of one layer whose decode requests are exactly `history`.
fn requests(universe: usize, history: &[Vec<usize>]) -> Arc<Requests> {
    let geometry = Geometry::decoder(1, universe, universe).unwrap();
    let mut ids = Vec::new();
    for set in history {
        let mut row = vec![moe_trace::EMPTY_SLOT; universe];
        row.iter_mut().zip(set).for_each(|(slot, &expert)| *slot = u16::try_from(expert).unwrap());
        ids.extend(row);
    }
    let mut trace = MemoryTrace::new(geometry.clone());
    trace.push(SequenceBuf::from_experts(&geometry, ids, Phase::Decode).unwrap()).unwrap();
    Arc::new(Requests::from_source(&trace, &Pool::model(&geometry)).unwrap())
}

pub(super) fn cache(
    kind: PolicyKind,
    shape: PoolShape,
    capacity: usize,
    oversize: Oversize,
    history: &[Vec<usize>],
) -> ExpertCache<Box<dyn EvictionPolicy>> {
    let policy = kind.build(shape, capacity, Some(&requests(shape.universe(), history))).unwrap();
    ExpertCache::new(policy, shape.universe(), capacity, oversize).unwrap()
}

/// Serves a request whose experts have router weights.
pub(super) fn serve<P: EvictionPolicy>(cache: &mut ExpertCache<P>, shape: PoolShape, wanted: &[usize]) -> Plan {
    serve_from(Some(0.5), cache, shape, wanted)
}

/// Serves a request whose first expert has the given router weight, and each of the others half that of the one before.
pub(super) fn serve_from<P: EvictionPolicy>(
    weight: Option<f32>,
    cache: &mut ExpertCache<P>,
    shape: PoolShape,
    wanted: &[usize],
) -> Plan {
    let mut buffer = RequestBuffer::new(shape.universe());
    let weights = std::iter::successors(Some(weight), |&weight| Some(weight.map(|weight| weight / 2.0)));
    for (&expert, weight) in wanted.iter().zip(weights) {
        buffer.want(ExpertKey::from_index(expert), weight);
    }
    let layer = wanted.first().map_or(0, |expert| expert / shape.experts);
    cache.request(buffer.request(LayerId(u16::try_from(layer).unwrap()), Phase::Decode)).unwrap().clone()
}

fn keys(keys: impl IntoIterator<Item = ExpertKey>) -> BTreeSet<usize> {
    keys.into_iter().map(ExpertKey::index).collect()
}

/// The rules of the engine, after every request; the cache and the policy validate themselves as well.
fn keeps_the_rules(kind: PolicyKind, shape: PoolShape, history: &[Vec<usize>], capacity: usize, oversize: Oversize) {
    let mut cache = cache(kind, shape, capacity, oversize, history);
    for (number, wanted) in history.iter().enumerate() {
        let before: BTreeSet<usize> = cache.resident().iter().collect();
        let plan = serve(&mut cache, shape, wanted);
        let wanted: BTreeSet<usize> = wanted.iter().copied().collect();
        let hits = keys(plan.hits().iter().map(|hit| hit.key));
        let loads = keys(plan.loads().iter().map(|load| load.key));
        let bypasses = keys(plan.bypasses().iter().copied());
        assert_eq!(hits, &wanted & &before, "hits are judged on the state before the request");
        assert_eq!(&(&hits | &loads) | &bypasses, wanted);
        assert_eq!(hits.len() + plan.loads().len() + plan.bypasses().len(), wanted.len());
        let mut resident = before.clone();
        for (number, wave) in plan.waves().enumerate() {
            let mut served = if number == 0 { hits.clone() } else { BTreeSet::new() };
            for load in wave {
                let evicted = plan.evicted(load).unwrap();
                assert_eq!(evicted.len(), usize::from(resident.len() == capacity), "free slots come first");
                for eviction in evicted {
                    let key = eviction.key.index();
                    assert!(resident.remove(&key) && !served.contains(&key));
                }
                assert!(resident.insert(load.key.index()));
                served.insert(load.key.index());
            }
            assert!(served.is_subset(&resident), "a wave is resident together");
        }
        assert_eq!(cache.resident().iter().collect::<BTreeSet<_>>(), resident);
        if wanted.len() <= capacity && !kind.needs().bypass {
            assert!(bypasses.is_empty() && plan.waves().count() == 1 && wanted.is_subset(&resident));
        }
        if number % 7 == 6 {
            cache.sequence_end();
        }
    }
}

/// After a rollback the cache holds exactly what the executed loads left, and goes on.
fn rolls_back(
    kind: PolicyKind,
    shape: PoolShape,
    history: &[Vec<usize>],
    capacity: usize,
    fail_at: prop::sample::Index,
) {
    let mut cache = cache(kind, shape, capacity, Oversize::Waves, history);
    for wanted in history {
        let before = cache.resident().clone();
        let plan = serve(&mut cache, shape, wanted);
        if plan.loads().is_empty() {
            continue;
        }
        let failed = fail_at.index(plan.loads().len());
        cache.rollback(failed).unwrap();
        let mut expected = before;
        for (number, load) in plan.loads().iter().enumerate().take(failed + 1) {
            plan.evicted(load).unwrap().iter().for_each(|eviction| _ = expected.remove(eviction.key.index()));
            if number < failed {
                expected.insert(load.key.index());
            }
        }
        assert_eq!(cache.resident(), &expected);
    }
}

/// Requests of up to five experts of one pool of twelve; in a pool of several layers, of one layer each.
fn histories(shape: PoolShape) -> impl Strategy<Value = Vec<Vec<usize>>> {
    let set = (0..shape.layers, proptest::collection::btree_set(0..shape.experts, 0..6));
    let request =
        move |(layer, set): (usize, BTreeSet<usize>)| set.into_iter().map(|e| layer * shape.experts + e).collect();
    proptest::collection::vec(set.prop_map(request), 1..60)
}

pub(super) fn shapes_and_histories() -> impl Strategy<Value = (PoolShape, Vec<Vec<usize>>)> {
    prop_oneof![Just(ONE_LAYER), Just(THREE_LAYERS)].prop_flat_map(|shape| (Just(shape), histories(shape)))
}

pub(super) fn oversizes() -> impl Strategy<Value = Oversize> {
    prop_oneof![Just(Oversize::Waves), Just(Oversize::Bypass)]
}

macro_rules! rules {
    ($reference:ident $name:ident: $kind:expr) => {
        mod $name {
            use super::*;

            proptest! {
                #[test]
                fn keeps_the_rules(
                    (shape, history) in shapes_and_histories(),
                    capacity in 1usize..=12,
                    oversize in oversizes(),
                ) {
                    super::keeps_the_rules($kind, shape, &history, capacity, oversize);
                }

                #[test]
                fn rolls_back(
                    (shape, history) in shapes_and_histories(),
                    capacity in 1usize..=12,
                    fail_at in any::<prop::sample::Index>(),
                ) {
                    super::rolls_back($kind, shape, &history, capacity, fail_at);
                }
            }
        }
    };
}

for_each_policy!(cases rules);

proptest! {
    /// Belady's loads are the fewest that any sequence of evictions can reach.
    #[test]
    fn belady_loads_equal_the_exhaustive_optimum(
        raw in proptest::collection::vec(proptest::collection::btree_set(0usize..6, 1..3), 1..9),
        capacity in 2usize..5,
    ) {
        let history: Vec<Vec<usize>> = raw.into_iter().map(|set| set.into_iter().collect()).collect();
        let shape = PoolShape { layers: 1, experts: 6 };
        let mut cache = cache(PolicyKind::Belady, shape, capacity, Oversize::Waves, &history);
        let loads: usize = history.iter().map(|wanted| serve(&mut cache, shape, wanted).loads().len()).sum();
        prop_assert_eq!(loads, fewest_misses(&history, 0, capacity, false));
    }

    /// With bypass, hits are the most that any choice of loads and evictions can reach, larger requests included.
    #[test]
    fn belady_bypass_misses_equal_the_exhaustive_optimum(
        raw in proptest::collection::vec(proptest::collection::btree_set(0usize..6, 1..5), 1..9),
        capacity in 1usize..5,
        oversize in oversizes(),
    ) {
        let history: Vec<Vec<usize>> = raw.into_iter().map(|set| set.into_iter().collect()).collect();
        let shape = PoolShape { layers: 1, experts: 6 };
        let mut cache = cache(PolicyKind::BeladyBypass, shape, capacity, oversize, &history);
        let misses = history.iter().map(|wanted| {
            let plan = serve(&mut cache, shape, wanted);
            plan.loads().len() + plan.bypasses().len()
        });
        prop_assert_eq!(misses.sum::<usize>(), fewest_misses(&history, 0, capacity, true));
    }

    /// No set of fixed residents, each loaded when it is first wanted, has more hits.
    #[test]
    fn the_static_best_set_equals_brute_force(history in histories(ONE_LAYER), capacity in 1usize..4) {
        let mut cache = cache(PolicyKind::StaticBestSet, ONE_LAYER, capacity, Oversize::Bypass, &history);
        let hits: usize = history.iter().map(|wanted| serve(&mut cache, ONE_LAYER, wanted).hits().len()).sum();
        let uses = |expert: u32| history.iter().filter(|wanted| wanted.contains(&(expert as usize))).count();
        let reuses: Vec<usize> = (0..12).map(|expert| uses(expert).saturating_sub(1)).collect();
        let sets = (0u32..1 << 12).filter(|set| set.count_ones() as usize == capacity);
        let hits_of = |set: u32| (0..12).filter(|expert| set >> expert & 1 == 1).map(|expert| reuses[expert]).sum::<usize>();
        prop_assert_eq!(hits, sets.map(hits_of).max().unwrap());
    }
}

/// Every set of residents that can follow is tried: what was hit stays, and without bypass what was wanted.
fn fewest_misses(history: &[Vec<usize>], resident: u32, capacity: usize, bypass: bool) -> usize {
    let Some((wanted, rest)) = history.split_first() else { return 0 };
    let wanted = wanted.iter().fold(0u32, |set, &expert| set | 1 << expert);
    let misses = (wanted & !resident).count_ones() as usize;
    let union = resident | wanted;
    let stays = if bypass { wanted & resident } else { wanted };
    let keeps = (0..64u32).filter(|keep| keep & !union == 0 && keep & stays == stays);
    let keeps = keeps.filter(|keep| keep.count_ones() as usize <= capacity);
    misses + keeps.map(|keep| fewest_misses(rest, keep, capacity, bypass)).min().expect("what stays fits")
}
