//! Tests that every policy passes: the cache against a naive twin that recomputes every priority from the whole history.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use moe_trace::{ExpertSet, Geometry, LayerId, MemoryTrace, Phase, SequenceBuf};
use proptest::prelude::*;

use crate::{ExpertCache, Oversize, PolicyKind, Pool, PoolShape, Requests};

/// Priority of `expert` at request `now`, from the history alone; the lowest is evicted.
fn naive_priority(
    kind: PolicyKind,
    history: &[Vec<usize>],
    now: usize,
    expert: usize,
) -> (Reverse<usize>, usize, usize) {
    let has = |request: &Vec<usize>| request.contains(&expert);
    let last_use = history[..=now].iter().rposition(has).map_or(0, |at| at + 1);
    match kind {
        PolicyKind::Lru => (Reverse(0), 0, last_use),
        PolicyKind::Lfu => (Reverse(0), history[..=now].iter().filter(|r| has(r)).count(), last_use),
        PolicyKind::Belady => (Reverse(history[now + 1..].iter().position(has).unwrap_or(usize::MAX)), 0, 0),
        PolicyKind::LookAhead { window } => {
            let end = (now + window).min(history.len());
            (Reverse(0), history[now..end].iter().filter(|r| has(r)).count(), last_use)
        }
    }
}

/// Hits, loads and bypasses of every request by the rules, slowly, and who is resident after it.
fn naive_run(
    kind: PolicyKind,
    history: &[Vec<usize>],
    capacity: usize,
    oversize: Oversize,
) -> Vec<([usize; 3], BTreeSet<usize>)> {
    let mut resident: Vec<usize> = Vec::new();
    let mut outcomes = Vec::new();
    for (now, wanted) in history.iter().enumerate() {
        let (hits, missing): (Vec<usize>, Vec<usize>) = wanted.iter().partition(|expert| resident.contains(expert));
        let mut pinned = wanted.clone();
        let mut in_wave = hits.len();
        let mut bypasses = 0;
        for &expert in &missing {
            if in_wave == capacity && oversize == Oversize::Waves {
                (pinned, in_wave) = (Vec::new(), 0);
            }
            pinned.push(expert);
            if resident.len() == capacity {
                let victims = resident.iter().copied().filter(|e| !pinned.contains(e));
                let Some(victim) = victims.min_by_key(|&e| (naive_priority(kind, history, now, e), e)) else {
                    bypasses += 1;
                    continue;
                };
                resident.retain(|&e| e != victim);
            }
            resident.push(expert);
            in_wave += 1;
        }
        let counts = [hits.len(), missing.len() - bypasses, bypasses];
        outcomes.push((counts, resident.iter().copied().collect()));
    }
    outcomes
}

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
    Arc::new(Requests::from_source(&trace, Pool::Layer(LayerId(0))).unwrap())
}

fn check(kind: PolicyKind, universe: usize, history: &[Vec<usize>], capacity: usize, oversize: Oversize) {
    let policy =
        kind.build(PoolShape { layers: 1, experts: universe }, capacity, Some(&requests(universe, history))).unwrap();
    let mut cache = ExpertCache::new(policy, universe, capacity, oversize).unwrap();
    let expected = naive_run(kind, history, capacity, oversize);
    for (wanted, (expected, resident)) in history.iter().zip(expected) {
        let set = ExpertSet::from_members(universe, wanted.iter().copied());
        let before = cache.resident().clone();
        let plan = cache.request(&set).unwrap().clone();
        let outcome = [plan.hits().len(), plan.loads().len(), plan.bypasses().len()];
        assert_eq!(outcome, expected, "{kind} at capacity {capacity}");
        assert_eq!(outcome[0], set.intersection_len(&before), "hits are judged on the state before the request");
        assert_eq!(cache.resident().iter().collect::<BTreeSet<_>>(), resident, "{kind} at capacity {capacity}");
        if wanted.len() <= capacity {
            assert!(set.is_subset(cache.resident()), "a request that fits is resident as a whole");
            assert!(plan.bypasses().is_empty() && plan.waves().count() == 1);
        }
    }
}

macro_rules! policy_suite {
    ($($name:ident: $kind:expr;)*) => {$(
        mod $name {
            use super::*;

            proptest! {
                #[test]
                fn agrees_with_the_naive_twin(
                    universe in 2usize..12,
                    capacity in 1usize..12,
                    waves in any::<bool>(),
                    raw in proptest::collection::vec(proptest::collection::btree_set(0usize..12, 0..6), 1..40),
                ) {
                    let history: Vec<Vec<usize>> =
                        raw.iter().map(|set| set.iter().copied().filter(|&e| e < universe).collect()).collect();
                    let oversize = if waves { Oversize::Waves } else { Oversize::Bypass };
                    check($kind, universe, &history, capacity.min(universe), oversize);
                }

                /// After a rollback the cache holds exactly what the executed loads left, and goes on.
                #[test]
                fn a_failed_load_is_rolled_back(
                    history in proptest::collection::vec(proptest::collection::btree_set(0usize..8, 1..4), 2..20),
                    capacity in 1usize..8,
                    fail_at in any::<prop::sample::Index>(),
                ) {
                    let history: Vec<Vec<usize>> = history.into_iter().map(|set| set.into_iter().collect()).collect();
                    let policy = $kind.build(PoolShape { layers: 1, experts: 8 }, capacity, Some(&requests(8, &history))).unwrap();
                    let mut cache = ExpertCache::new(policy, 8, capacity, Oversize::Waves).unwrap();
                    for wanted in &history {
                        let before = cache.resident().clone();
                        let plan = cache.request(&ExpertSet::from_members(8, wanted.iter().copied())).unwrap().clone();
                        if plan.loads().is_empty() {
                            continue;
                        }
                        let failed = fail_at.index(plan.loads().len());
                        cache.rollback(failed);
                        let mut expected = before;
                        for (number, load) in plan.loads().iter().enumerate().take(failed + 1) {
                            if let Some(evicted) = load.evicted {
                                expected.remove(evicted.index());
                            }
                            if number < failed {
                                expected.insert(load.key.index());
                            }
                        }
                        prop_assert_eq!(cache.resident(), &expected);
                    }
                }
            }
        }
    )*};
}

policy_suite! {
    lru: PolicyKind::Lru;
    lfu: PolicyKind::Lfu;
    belady: PolicyKind::Belady;
    look_ahead_1: PolicyKind::LookAhead { window: 1 };
    look_ahead_3: PolicyKind::LookAhead { window: 3 };
}

proptest! {
    /// Belady's loads are the fewest that any sequence of evictions can reach.
    #[test]
    fn belady_loads_equal_the_exhaustive_optimum(
        raw in proptest::collection::vec(proptest::collection::btree_set(0usize..6, 1..3), 1..9),
        capacity in 2usize..5,
    ) {
        let history: Vec<Vec<usize>> = raw.into_iter().map(|set| set.into_iter().collect()).collect();
        let policy = PolicyKind::Belady.build(PoolShape { layers: 1, experts: 6 }, capacity, Some(&requests(6, &history))).unwrap();
        let mut cache = ExpertCache::new(policy, 6, capacity, Oversize::Waves).unwrap();
        let mut loads = 0;
        for wanted in &history {
            loads += cache.request(&ExpertSet::from_members(6, wanted.iter().copied())).unwrap().loads().len();
        }
        prop_assert_eq!(loads, fewest_loads(&history, 0, capacity));
    }
}

/// Loads are mandatory; every set of residents that contains the request is tried.
fn fewest_loads(history: &[Vec<usize>], resident: u32, capacity: usize) -> usize {
    let Some((wanted, rest)) = history.split_first() else { return 0 };
    let wanted = wanted.iter().fold(0u32, |set, &expert| set | 1 << expert);
    let loads = (wanted & !resident).count_ones() as usize;
    let union = resident | wanted;
    let keeps = (0..64u32).filter(|keep| keep & !union == 0 && keep & wanted == wanted);
    let keeps = keeps.filter(|keep| keep.count_ones() as usize <= capacity);
    loads + keeps.map(|keep| fewest_loads(rest, keep, capacity)).min().expect("wanted itself fits")
}

#[test]
fn resident_sets_after_every_step() {
    // Requests over 5 experts, 3 slots.
    let history = vec![vec![0, 1], vec![2], vec![0, 3], vec![4], vec![1]];
    let states = |kind: PolicyKind| {
        let policy = kind.build(PoolShape { layers: 1, experts: 5 }, 3, Some(&requests(5, &history))).unwrap();
        let mut cache = ExpertCache::new(policy, 5, 3, Oversize::Waves).unwrap();
        let state = |wanted: &Vec<usize>| {
            cache.request(&ExpertSet::from_members(5, wanted.iter().copied())).unwrap();
            cache.resident().iter().collect::<Vec<_>>()
        };
        history.iter().map(state).collect::<Vec<_>>()
    };
    // 1 is oldest when 3 comes; 2 when 4 comes; 0 and 3 are equally old when 1 comes, 0 is the lower key.
    assert_eq!(states(PolicyKind::Lru), [vec![0, 1], vec![0, 1, 2], vec![0, 2, 3], vec![0, 3, 4], vec![1, 3, 4]]);
    // 0 has two uses and stays; among those with one the oldest leaves: 1, then 2, then 3.
    assert_eq!(states(PolicyKind::Lfu), [vec![0, 1], vec![0, 1, 2], vec![0, 2, 3], vec![0, 3, 4], vec![0, 1, 4]]);
    // 1 comes again and is kept: 2 leaves, then 0 (never again, lowest key).
    assert_eq!(states(PolicyKind::Belady), [vec![0, 1], vec![0, 1, 2], vec![0, 1, 3], vec![1, 3, 4], vec![1, 3, 4]]);
    // A window of two requests sees 1 only when 4 is served; by then 1 has left.
    let look_ahead = PolicyKind::LookAhead { window: 2 };
    assert_eq!(states(look_ahead), [vec![0, 1], vec![0, 1, 2], vec![0, 2, 3], vec![0, 3, 4], vec![1, 3, 4]]);
}
