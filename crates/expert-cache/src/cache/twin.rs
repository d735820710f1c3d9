//! The cache beside a naive one that keeps lists and decides everything anew.

use moe_trace::{ExpertSet, LayerId, Phase};
use proptest::prelude::*;

use super::{ExpertCache, Oversize};
use crate::{CacheError, EvictionPolicy, ExpertKey, ExpertSizes, Plan, Request, SlotId};

const UNIVERSE: usize = 9;

/// Evicts the oldest, but declines now and then if it is fussy.
#[derive(Clone, Debug)]
struct Oldest {
    fussy: bool,
    clock: usize,
    last_use: [usize; UNIVERSE],
    resident: ExpertSet,
}

impl Oldest {
    fn new(fussy: bool) -> Oldest {
        Oldest { fussy, clock: 0, last_use: [0; UNIVERSE], resident: ExpertSet::new(UNIVERSE) }
    }

    fn choose(&self, candidates: impl Iterator<Item = usize>) -> Option<usize> {
        let oldest = candidates.min_by_key(|&key| (self.last_use[key], key));
        oldest.filter(|key| !self.fussy || !(self.clock + key).is_multiple_of(4))
    }

    fn stamp(&mut self, wanted: &[usize]) {
        self.clock += 1;
        wanted.iter().for_each(|&key| self.last_use[key] = self.clock);
    }
}

impl EvictionPolicy for Oldest {
    fn on_request(&mut self, request: &Request<'_>) {
        self.stamp(&request.wanted().iter().collect::<Vec<_>>());
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        assert!(self.resident.insert(expert.index()), "admitted twice");
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        assert!(self.resident.remove(expert.index()), "forgotten twice");
    }

    fn victim(&mut self, _: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.choose(self.resident.iter().filter(|&key| !pinned.contains(key))).map(ExpertKey::from_index)
    }
}

#[derive(Clone, Debug)]
struct Resident {
    key: usize,
    decode: bool,
    unused: bool,
    /// Last request that it is held for, if it is held.
    until: Option<usize>,
}

/// What a request came to.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    /// Key, and whether it is the first use of a prefetch.
    hits: Vec<(usize, bool)>,
    /// Key, and who leaves for it: key, and whether it was an unused prefetch.
    loads: Vec<(usize, Vec<(usize, bool)>)>,
    /// Loads of each wave.
    waves: Vec<usize>,
    bypasses: Vec<usize>,
    displaced: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Naive {
    policy: Oldest,
    sizes: Vec<u64>,
    capacity: u64,
    oversize: Oversize,
    quota: Option<u64>,
    residents: Vec<Resident>,
    displaced: Vec<usize>,
    running: Vec<usize>,
}

impl Naive {
    fn size_of<'a>(&self, keys: impl IntoIterator<Item = &'a usize>) -> u64 {
        keys.into_iter().map(|&key| self.sizes[key]).sum()
    }

    fn used(&self) -> u64 {
        self.size_of(self.residents.iter().map(|resident| &resident.key))
    }

    fn is_resident(&self, key: usize) -> bool {
        self.residents.iter().any(|resident| resident.key == key)
    }

    fn is_guarded(&self, key: usize, phase: Phase) -> bool {
        let own = self.residents.iter().filter(|resident| !resident.decode).map(|resident| &resident.key);
        let own = self.size_of(own);
        phase == Phase::Prefill && self.quota.is_some_and(|quota| own + self.sizes[key] > quota)
    }

    fn is_held(&self, resident: &Resident) -> bool {
        resident.until.is_some_and(|until| until >= self.policy.clock)
    }

    fn candidates(&self, pinned: &[usize], guarded: bool, held: bool) -> Vec<usize> {
        let residents = self.residents.iter().filter(|resident| !pinned.contains(&resident.key));
        let residents = residents.filter(|resident| !(guarded && resident.decode || held && self.is_held(resident)));
        residents.map(|resident| resident.key).collect()
    }

    fn remove(&mut self, key: usize) -> (usize, bool) {
        let place = self.residents.iter().position(|resident| resident.key == key).unwrap();
        (key, self.residents.remove(place).unused)
    }

    fn request(&mut self, wanted: &[usize], phase: Phase) -> Outcome {
        self.policy.stamp(wanted);
        let mut outcome = Outcome::default();
        let (hits, missing): (Vec<usize>, Vec<usize>) = wanted.iter().partition(|&&key| self.is_resident(key));
        for resident in self.residents.iter_mut().filter(|resident| hits.contains(&resident.key)) {
            outcome.hits.push((resident.key, resident.unused));
            resident.unused = false;
            resident.until = None;
            resident.decode |= phase == Phase::Decode;
        }
        outcome.hits.sort_unstable();
        outcome.displaced = missing.iter().copied().filter(|key| self.displaced.contains(key)).collect();
        self.displaced.retain(|key| !missing.contains(key));
        let (mut pinned, mut wave, mut in_wave) = (wanted.to_vec(), hits, 0);
        for &key in &missing {
            let before = self.residents.clone();
            let mut evicted = Vec::new();
            let loaded = loop {
                let mut end_wave = self.size_of(&wave) + self.sizes[key] > self.capacity;
                if !end_wave {
                    if self.used() + self.sizes[key] <= self.capacity {
                        break true;
                    }
                    let guarded = self.is_guarded(key, phase);
                    let sets = [true, false].map(|held| self.candidates(&pinned, guarded, held));
                    let candidates = match sets.into_iter().find(|set| !set.is_empty()) {
                        Some(set) => set,
                        None => {
                            end_wave = guarded && (!wave.is_empty() || self.oversize == Oversize::Bypass);
                            self.candidates(&pinned, false, false)
                        }
                    };
                    if !end_wave {
                        let Some(victim) = self.policy.choose(candidates.into_iter()) else { break false };
                        evicted.push(self.remove(victim));
                        continue;
                    }
                }
                if self.oversize == Oversize::Bypass {
                    break false;
                }
                outcome.waves.push(in_wave);
                (pinned, wave, in_wave) = (vec![key], Vec::new(), 0);
            };
            if loaded {
                self.residents.push(Resident { key, decode: phase == Phase::Decode, unused: false, until: None });
                outcome.loads.push((key, evicted));
                wave.push(key);
                in_wave += 1;
            } else {
                self.residents = before;
                outcome.bypasses.push(key);
            }
            pinned.push(key);
        }
        outcome.waves.push(in_wave);
        self.running = pinned;
        outcome
    }

    /// Who leaves for a prefetch, if it is made.
    fn prefetch(&mut self, key: usize, phase: Phase, within: usize) -> Option<Vec<(usize, bool)>> {
        let until = (within > 0).then_some(self.policy.clock + within);
        if let Some(resident) = self.residents.iter_mut().find(|resident| resident.key == key) {
            resident.until = until.or(resident.until);
            return None;
        }
        let before = self.clone();
        let mut evicted = Vec::new();
        while self.used() + self.sizes[key] > self.capacity {
            let candidates = self.candidates(&self.running, self.is_guarded(key, phase), true);
            let Some(victim) = self.policy.choose(candidates.into_iter()) else {
                *self = before;
                return None;
            };
            evicted.push(self.remove(victim));
            self.displaced.push(victim);
        }
        self.displaced.retain(|&displaced| displaced != key);
        self.residents.push(Resident { key, decode: phase == Phase::Decode, unused: true, until });
        Some(evicted)
    }
}

fn evicted(plan: &Plan, load: &crate::Load) -> Vec<(usize, bool)> {
    plan.evicted(load).unwrap().iter().map(|eviction| (eviction.key.index(), eviction.unused)).collect()
}

fn outcome(plan: &Plan) -> Outcome {
    Outcome {
        hits: plan.hits().iter().map(|hit| (hit.key.index(), hit.prefetched)).collect(),
        loads: plan.loads().iter().map(|load| (load.key.index(), evicted(plan, load))).collect(),
        waves: plan.waves().map(<[_]>::len).collect(),
        bypasses: plan.bypasses().iter().map(|key| key.index()).collect(),
        displaced: plan.displaced().iter().map(|key| key.index()).collect(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Request(Vec<usize>, Phase),
    Prefetch(usize, Phase, usize),
    Release,
    /// Takes back the last plan from about this load on.
    Rollback(prop::sample::Index),
    /// Takes an expert out of its slot.
    Forget(usize),
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![Just(Phase::Prefill), Just(Phase::Decode)]
}

fn step() -> impl Strategy<Value = Step> {
    let wanted = proptest::collection::btree_set(0..UNIVERSE, 0..5).prop_map(|set| set.into_iter().collect());
    prop_oneof![
        3 => (wanted, phase()).prop_map(|(wanted, phase)| Step::Request(wanted, phase)),
        2 => (0..UNIVERSE, phase(), 0usize..3).prop_map(|(key, phase, within)| Step::Prefetch(key, phase, within)),
        1 => Just(Step::Release),
    ]
}

fn rollback() -> impl Strategy<Value = Step> {
    any::<prop::sample::Index>().prop_map(Step::Rollback)
}

/// Sizes of all experts, and a capacity that holds the largest.
fn sizes() -> impl Strategy<Value = (Vec<u64>, u64)> {
    let sizes = prop_oneof![Just(vec![1; UNIVERSE]), proptest::collection::vec(1u64..6, UNIVERSE)];
    sizes.prop_flat_map(|sizes| {
        let (largest, total) = (sizes.iter().copied().max().unwrap_or(1), sizes.iter().sum::<u64>());
        (Just(sizes), largest..=total)
    })
}

fn twins(
    (sizes, capacity): (Vec<u64>, u64),
    quota: Option<u64>,
    (waves, fussy): (bool, bool),
    warm: &[usize],
) -> (ExpertCache<Oldest>, Naive) {
    let oversize = if waves { Oversize::Waves } else { Oversize::Bypass };
    let policy = Oldest::new(fussy);
    let expert_sizes = ExpertSizes::each(sizes.clone()).unwrap();
    let mut cache = ExpertCache::in_bytes(policy.clone(), expert_sizes, capacity, oversize).unwrap();
    if let Some(quota) = quota {
        cache = cache.with_prefill_quota(quota).unwrap();
    }
    let residents = Vec::new();
    let mut naive =
        Naive { policy, sizes, capacity, oversize, quota, residents, displaced: Vec::new(), running: Vec::new() };
    for &key in warm {
        if naive.used() + naive.sizes[key] <= capacity {
            cache.warm(&[ExpertKey::from_index(key)]).unwrap();
            naive.residents.push(Resident { key, decode: true, unused: false, until: None });
        }
    }
    (cache, naive)
}

proptest! {
    /// Waves, bytes, guards, prefetches, warm starts and policies that decline, in any order.
    #[test]
    fn every_plan_agrees_with_the_naive_twin(
        sizes in sizes(),
        quota in proptest::option::of(0u64..8),
        flags in any::<(bool, bool)>(),
        warm in proptest::collection::btree_set(0..UNIVERSE, 0..UNIVERSE),
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let (mut cache, mut naive) = twins(sizes, quota, flags, &warm.into_iter().collect::<Vec<_>>());
        for step in steps {
            match step {
                Step::Request(wanted, phase) => {
                    let set = ExpertSet::from_members(UNIVERSE, wanted.iter().copied());
                    let plan = cache.request(Request::new(&set, LayerId(0), phase)).unwrap();
                    prop_assert_eq!(outcome(plan), naive.request(&wanted, phase));
                }
                Step::Prefetch(key, phase, within) => {
                    let load = cache.prefetch(ExpertKey::from_index(key), phase, within).unwrap();
                    let evicted = load.map(|load| evicted(cache.prefetches(), &load));
                    prop_assert_eq!(evicted, naive.prefetch(key, phase, within));
                }
                Step::Release => {
                    cache.release();
                    naive.running.clear();
                }
                Step::Rollback(..) | Step::Forget(_) => {}
            }
            let mut residents: Vec<usize> = naive.residents.iter().map(|resident| resident.key).collect();
            residents.sort_unstable();
            prop_assert_eq!(cache.resident().iter().collect::<Vec<_>>(), residents);
            let mut unused: Vec<usize> = naive.residents.iter().filter(|r| r.unused).map(|r| r.key).collect();
            unused.sort_unstable();
            prop_assert_eq!(cache.unused().map(ExpertKey::index).collect::<Vec<_>>(), unused);
        }
    }

    /// A prefill of any length takes from decode no more than its quota, or one expert at a time.
    #[test]
    fn a_guard_keeps_what_decode_uses(
        quota in 0usize..6,
        waves in any::<bool>(),
        prefills in proptest::collection::vec(proptest::collection::btree_set(0..UNIVERSE, 0..UNIVERSE), 1..8),
    ) {
        let (cache, _) = twins((vec![1; UNIVERSE], 5), Some(quota as u64), (waves, false), &[]);
        let mut cache = cache;
        let decode = ExpertSet::from_members(UNIVERSE, 0..5);
        cache.request(&decode).unwrap();
        for prefill in prefills {
            let set = ExpertSet::from_members(UNIVERSE, prefill.iter().copied());
            let plan = cache.request(Request::new(&set, LayerId(0), Phase::Prefill)).unwrap();
            let served = plan.hits().len() + plan.loads().len() + plan.bypasses().len();
            prop_assert_eq!(served, prefill.len());
            prop_assert!(!waves || plan.bypasses().is_empty(), "waves serve everything, whatever the quota");
            let kept = cache.resident().intersection_len(&decode);
            let room = if waves { quota.max(1) } else { quota };
            prop_assert!(kept + room >= 5, "{kept} of decode's experts are left at a quota of {quota}");
        }
    }

    /// Rollbacks of plans and experts that are forgotten, mixed at will, lose no slot; without prefetches in between, residents
    /// are exact. A plan is taken back once.
    #[test]
    fn rollbacks_lose_nothing(
        sizes in sizes(),
        quota in proptest::option::of(0u64..8),
        flags in any::<(bool, bool)>(),
        steps in proptest::collection::vec(prop_oneof![4 => step(), 2 => rollback(), 1 => (0..UNIVERSE).prop_map(Step::Forget)], 1..60),
    ) {
        let same_size = sizes.0.iter().all(|&size| size == sizes.0[0]);
        let (mut cache, _) = twins(sizes, quota, flags, &[]);
        let mut before = cache.resident().clone();
        let (mut exact, mut planned) = (false, false);
        for step in steps {
            match step {
                Step::Request(wanted, phase) => {
                    before = cache.resident().clone();
                    let set = ExpertSet::from_members(UNIVERSE, wanted);
                    cache.request(Request::new(&set, LayerId(0), phase)).unwrap();
                    (exact, planned) = (true, true);
                }
                Step::Prefetch(key, phase, within) => {
                    cache.prefetch(ExpertKey::from_index(key), phase, within).unwrap();
                    exact = false;
                }
                Step::Release => cache.release(),
                Step::Forget(key) => {
                    let (expert, slot) = (ExpertKey::from_index(key), cache.residency.slot(key));
                    let elsewhere = SlotId(slot.map_or(0, |slot| slot.0 + 1));
                    prop_assert!(cache.forget(expert, elsewhere).is_none());
                    let gone = slot.and_then(|slot| cache.forget(expert, slot));
                    prop_assert_eq!(gone.map(|gone| (gone.key, gone.slot)), slot.map(|slot| (expert, slot)));
                    prop_assert!(!cache.resident().contains(key));
                    exact = false;
                }
                Step::Rollback(at) => {
                    let plan = cache.plan().clone();
                    let failed = at.index(plan.loads().len() + 1);
                    let residents = cache.resident().clone();
                    let behind = plan.loads().len() + 1;
                    if !planned {
                        let refused = matches!(cache.rollback(0), Err(CacheError::NoPlan));
                        prop_assert!(refused);
                        prop_assert_eq!(cache.resident(), &residents);
                        continue;
                    }
                    let refused = matches!(cache.rollback(behind), Err(CacheError::Loaded { loaded, .. }) if loaded == behind);
                    prop_assert!(refused);
                    prop_assert_eq!(cache.resident(), &residents);
                    cache.rollback(failed).unwrap();
                    if exact {
                        if let Some(load) = plan.loads().get(failed) {
                            prop_assert!(!cache.resident().contains(load.key.index()));
                        }
                        // With sizes of their own, an expert may come back to find its room taken, but not its place.
                        let mut expected = before.clone();
                        for (number, load) in plan.loads().iter().enumerate().take(failed + 1) {
                            plan.evicted(load).unwrap().iter().for_each(|eviction| _ = expected.remove(eviction.key.index()));
                            if number < failed {
                                expected.insert(load.key.index());
                            }
                        }
                        prop_assert!(cache.resident().is_subset(&expected));
                        prop_assert!(!same_size || *cache.resident() == expected);
                    }
                    (exact, planned) = (false, false);
                }
            }
        }
    }
}

#[test]
fn impossible_caches_and_residents_are_refused() {
    let cache = |capacity| {
        ExpertCache::in_bytes(
            Oldest::new(false),
            ExpertSizes::each(vec![1, 1, 1, 1, 1, 1, 1, 1, 3]).unwrap(),
            capacity,
            Oversize::Waves,
        )
    };
    assert_eq!(cache(2).unwrap_err().to_string(), "the cache has 2 bytes, the largest expert 3");
    let mut cache = cache(4).unwrap();
    let mut warm = |keys: &[u32]| {
        let keys: Vec<ExpertKey> = keys.iter().copied().map(ExpertKey).collect();
        cache.warm(&keys).map_err(|error| error.to_string())
    };
    assert_eq!(warm(&[9]).unwrap_err(), "expert 9 is out of range, the pool has 9");
    assert_eq!(warm(&[1, 1]).unwrap_err(), "expert 1 of the pool is resident twice");
    assert_eq!(warm(&[8, 0, 1]).unwrap_err(), "the residents take 5 of 4 bytes or slots");
    assert!(warm(&[8, 0]).is_ok());
    assert_eq!(warm(&[1]).unwrap_err(), "the residents take 5 of 4 bytes or slots");
    assert_eq!(
        cache.prefetch(ExpertKey(9), Phase::Decode, 1).unwrap_err().to_string(),
        "expert 9 is out of range, the pool has 9"
    );
}
