//! Policies that choose what may not leave, and plans that are used wrongly.

use moe_trace::{ExpertSet, LayerId, Phase};
use proptest::prelude::*;

use super::{ExpertCache, Oversize};
use crate::{CacheError, EvictionPolicy, ExpertKey, Lru, PolicyKind, PoolShape, Request};

const UNIVERSE: usize = 8;

/// What a liar names in place of a victim.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// The lowest resident, pinned or not.
    Lowest,
    Absent,
    OutsideOfThePool,
    Incoming,
}

/// LRU that lies at some of the victims that it is asked for.
#[derive(Clone, Debug)]
struct Liar {
    honest: Lru,
    resident: ExpertSet,
    lie: Lie,
    /// Victims until the lie.
    patience: usize,
}

impl Liar {
    fn new(lie: Lie, patience: usize) -> Liar {
        Liar { honest: Lru::new(UNIVERSE), resident: ExpertSet::new(UNIVERSE), lie, patience }
    }
}

impl EvictionPolicy for Liar {
    fn on_request(&mut self, request: &Request<'_>) {
        self.honest.on_request(request);
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.resident.insert(expert.index());
        self.honest.on_insert(expert);
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.resident.remove(expert.index());
        self.honest.on_evict(expert);
    }

    fn victim(&mut self, incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        let lies = self.patience == 0;
        self.patience = self.patience.wrapping_sub(1);
        match self.lie {
            _ if !lies => self.honest.victim(incoming, pinned),
            Lie::Lowest => self.resident.iter().next().map(ExpertKey::from_index),
            Lie::Absent => (0..UNIVERSE).find(|&key| !self.resident.contains(key)).map(ExpertKey::from_index),
            Lie::OutsideOfThePool => Some(ExpertKey(99)),
            Lie::Incoming => Some(incoming),
        }
    }

    fn name(&self) -> &'static str {
        "liar"
    }
}

fn set(keys: &[usize]) -> ExpertSet {
    ExpertSet::from_members(UNIVERSE, keys.iter().copied())
}

fn residents<P: EvictionPolicy>(cache: &ExpertCache<P>) -> Vec<usize> {
    cache.resident().iter().collect()
}

#[test]
fn a_victim_that_may_not_leave_is_an_error_that_names_policy_and_victim() {
    for (lie, victim, problem) in [
        (Lie::Lowest, 1, "is pinned"),
        (Lie::Absent, 0, "is not resident"),
        (Lie::OutsideOfThePool, 99, "is not of the pool"),
        (Lie::Incoming, 3, "is not resident"),
    ] {
        let expected = format!("policy liar chose expert {victim} to be evicted, which {problem}");
        let mut cache = ExpertCache::new(Liar::new(lie, 0), UNIVERSE, 2, Oversize::Waves).unwrap();
        cache.request(&set(&[1, 2])).unwrap();
        // 1 is hit and in use while 3 comes.
        assert_eq!(cache.request(&set(&[1, 3])).unwrap_err().to_string(), expected);
        assert_eq!(residents(&cache), [1, 2]);
        assert!(matches!(cache.rollback(0), Err(CacheError::NoPlan)));
        // The policy lied once: the same request is served now.
        let plan = cache.request(&set(&[1, 3])).unwrap();
        assert_eq!((plan.hits().len(), plan.loads()[0].key, plan.evictions()[0].key), (1, ExpertKey(3), ExpertKey(2)));
    }
}

#[test]
fn a_lie_in_a_later_wave_takes_the_whole_plan_back() {
    // Two slots: 0 and 1 are the first wave; 2 replaces 0, then the lie for 3 names 2, which is of the running wave.
    let mut cache = ExpertCache::new(Liar::new(Lie::Absent, 3), UNIVERSE, 2, Oversize::Waves).unwrap();
    cache.request(&set(&[6, 7])).unwrap();
    let slots = [6, 7].map(|key| cache.slot(ExpertKey(key)));
    let error = cache.request(&set(&[0, 1, 2, 3])).unwrap_err();
    assert!(matches!(error, CacheError::Victim { policy: "liar", .. }), "{error}");
    assert_eq!([6, 7].map(|key| cache.slot(ExpertKey(key))), slots);
    assert!(cache.plan().loads().is_empty() && cache.plan().hits().is_empty());
    assert_eq!(cache.request(&set(&[6, 7])).unwrap().hits().len(), 2);
}

#[test]
fn a_lie_in_a_prefetch_is_an_error_too() {
    let mut cache = ExpertCache::new(Liar::new(Lie::Lowest, 0), UNIVERSE, 2, Oversize::Waves).unwrap();
    cache.request(&set(&[1])).unwrap();
    cache.warm(&[ExpertKey(5)]).unwrap();
    let error = cache.prefetch(ExpertKey(3), Phase::Decode, 1).unwrap_err().to_string();
    assert_eq!(error, "policy liar chose expert 1 to be evicted, which is pinned");
    assert_eq!(residents(&cache), [1, 5]);
    let load = cache.prefetch(ExpertKey(3), Phase::Decode, 1).unwrap().unwrap();
    assert_eq!(cache.prefetches().evicted(&load).unwrap()[0].key, ExpertKey(5));
}

#[test]
fn prefetched_hits_of_a_plan_that_is_taken_back_are_unused_again() {
    let mut cache = ExpertCache::new(Liar::new(Lie::Absent, 0), UNIVERSE, 2, Oversize::Waves).unwrap();
    cache.request(&set(&[1])).unwrap();
    cache.prefetch(ExpertKey(4), Phase::Decode, 1).unwrap().unwrap();
    cache.release();
    cache.request(&set(&[4, 5])).unwrap_err();
    assert_eq!(cache.unused().collect::<Vec<_>>(), [ExpertKey(4)]);
    assert!(cache.request(&set(&[4, 5])).unwrap().hits()[0].prefetched);
}

proptest! {
    /// However a policy lies, residents are as before the request, each in its slot, and the cache goes on.
    #[test]
    fn no_lie_breaks_a_cache(
        lie in prop_oneof![Just(Lie::Lowest), Just(Lie::Absent), Just(Lie::OutsideOfThePool), Just(Lie::Incoming)],
        patience in 0usize..12,
        waves in any::<bool>(),
        capacity in 1usize..5,
        requests in proptest::collection::vec((proptest::collection::btree_set(0..UNIVERSE, 1..6), any::<bool>()), 1..20),
    ) {
        let oversize = if waves { Oversize::Waves } else { Oversize::Bypass };
        let mut cache = ExpertCache::new(Liar::new(lie, patience), UNIVERSE, capacity, oversize).unwrap();
        for (wanted, prefill) in requests {
            let places = |cache: &ExpertCache<Liar>| {
                (0..8).map(|key| cache.slot(ExpertKey(key))).collect::<Vec<_>>()
            };
            let before = places(&cache);
            let wanted: Vec<usize> = wanted.into_iter().collect();
            let phase = if prefill { Phase::Prefill } else { Phase::Decode };
            match cache.request(Request::new(&set(&wanted), LayerId(0), phase)) {
                Err(error) => {
                    prop_assert!(matches!(error, CacheError::Victim { .. }), "{error}");
                    prop_assert_eq!(places(&cache), before);
                }
                Ok(plan) => {
                    prop_assert_eq!(plan.hits().len() + plan.loads().len() + plan.bypasses().len(), wanted.len());
                }
            }
        }
    }
}

#[test]
fn a_policy_of_another_pool_is_refused_when_the_cache_is_made() {
    let error = ExpertCache::new(Lru::new(4), 16, 4, Oversize::Waves).unwrap_err().to_string();
    assert_eq!(error, "policy expert_cache::policies::lru::Lru was made for a pool of 4 experts, the cache is over 16");
    let shape = PoolShape { layers: 2, experts: 4 };
    for &kind in PolicyKind::all() {
        let built = kind.build(shape, 3, None);
        if kind.needs_future() {
            assert!(matches!(built, Err(CacheError::NeedsFuture { .. })), "{kind}");
            continue;
        }
        let boxed = built.unwrap();
        assert_eq!(boxed.universe(), Some(8), "{kind}");
        let refused = ExpertCache::new(boxed, 9, 3, Oversize::Waves);
        assert!(matches!(refused, Err(CacheError::PolicyUniverse { found: 8, expected: 9, .. })), "{kind}");
    }
}

#[test]
fn plans_and_loads_are_used_once_and_with_each_other() {
    let mut cache = ExpertCache::new(Lru::new(UNIVERSE), UNIVERSE, 2, Oversize::Waves).unwrap();
    assert!(matches!(cache.rollback(0), Err(CacheError::NoPlan)));
    let old = cache.request(&set(&[2, 3])).unwrap().loads()[0];
    assert!(matches!(cache.rollback(99), Err(CacheError::Loaded { loaded: 99, loads: 2 })));
    let plan = cache.request(&set(&[2, 4])).unwrap();
    let load = plan.loads()[0];
    assert_eq!(plan.evicted(&load).unwrap()[0].key, ExpertKey(3));
    assert_eq!(plan.evicted(&old).unwrap_err().to_string(), "the load of expert 2 is not of this plan");
    cache.release();
    let prefetch = cache.prefetch(ExpertKey(5), Phase::Decode, 1).unwrap().unwrap();
    assert!(cache.plan().evicted(&prefetch).is_err() && cache.prefetches().evicted(&load).is_err());
    assert_eq!(cache.prefetches().evicted(&prefetch).unwrap()[0].key, ExpertKey(2));
    cache.rollback(1).unwrap();
    assert!(matches!(cache.rollback(1), Err(CacheError::NoPlan)));
    // The load of a plan that was taken back is of no plan any more.
    assert!(cache.plan().evicted(&load).is_err());
    cache.request(&set(&[5])).unwrap();
    assert!(cache.prefetches().evicted(&prefetch).is_err());
    // A copy that failed after the next request was planned is forgotten by its slot.
    assert!(cache.forget(prefetch.key, prefetch.slot).is_some());
    assert_eq!(cache.slot(prefetch.key), None);
}

/// Two caches that decide alike have equal plans, and still each plan knows its own loads alone.
#[test]
fn a_load_of_another_cache_is_of_no_plan_even_if_its_fields_are_equal() {
    let make = || ExpertCache::new(Lru::new(UNIVERSE), UNIVERSE, 2, Oversize::Waves).unwrap();
    let (mut one, mut other) = (make(), make());
    // Prefetches before the first request are told apart, too.
    let first = one.prefetch(ExpertKey(7), Phase::Decode, 1).unwrap().unwrap();
    assert_eq!(other.prefetch(ExpertKey(7), Phase::Decode, 1).unwrap(), Some(first));
    assert!(one.prefetches().evicted(&first).is_ok() && other.prefetches().evicted(&first).is_err());
    let mut clone = one.clone();
    for wanted in [[2, 3], [2, 4]] {
        let load = *one.request(&set(&wanted)).unwrap().loads().last().unwrap();
        for cache in [&mut other, &mut clone] {
            let plan = cache.request(&set(&wanted)).unwrap();
            assert_eq!((plan, plan.loads().last()), (one.plan(), Some(&load)));
            assert!(matches!(plan.evicted(&load), Err(CacheError::OtherPlan { .. })));
            assert!(plan.evicted(plan.loads().last().unwrap()).is_ok());
            assert!(one.plan().evicted(plan.loads().last().unwrap()).is_err());
        }
        assert!(one.plan().evicted(&load).is_ok());
    }
}

#[test]
fn slots_are_told_and_a_late_quota_is_refused() {
    let mut cache = ExpertCache::new(Lru::new(UNIVERSE), UNIVERSE, 3, Oversize::Waves).unwrap();
    let slots = cache.warm(&[ExpertKey(6), ExpertKey(0)]).unwrap();
    let plan = cache.request(&set(&[0, 6])).unwrap();
    assert_eq!([plan.hits()[1].slot, plan.hits()[0].slot], [slots[0], slots[1]]);
    assert_eq!(cache.slot(ExpertKey(6)), Some(slots[0]));
    assert_eq!((cache.slot(ExpertKey(1)), cache.slot(ExpertKey(99))), (None, None));
    let error = cache.with_prefill_quota(1).unwrap_err().to_string();
    assert_eq!(error, "2 experts are resident, a prefill quota is given to an empty cache");
}
