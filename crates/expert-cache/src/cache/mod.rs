//! Turns requests into plans.

mod marks;
mod prefetching;
mod rollback;
mod room;
#[cfg(test)]
mod trust;
#[cfg(test)]
mod twin;

use std::sync::Arc;

use moe_trace::{ExpertSet, Phase};

use self::marks::PrefetchMarks;
use crate::cache_identity::CacheIdentity;
use crate::guard::PhaseGuard;
use crate::residency::Residency;
use crate::{
    CacheError, EvictionPolicy, ExpertKey, ExpertSizes, Hit, MissPolicy, Plan, PolicyKind, PoolShape, Request,
    Requests, Result, SlotId,
};

/// What happens to a request that is larger than the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Oversize {
    /// It is served in waves; a later wave may evict experts of an earlier one.
    Waves,
    /// What does not fit is bypassed.
    Bypass,
}

/// A cache for the experts of one pool.
///
/// Rules: a request is judged as a whole on the state before it; nothing of a wave is evicted while the wave is served;
/// what is free is used before anything is evicted.
///
/// ```
/// use expert_cache::{ExpertCache, Lru, Oversize};
/// use moe_trace::ExpertSet;
///
/// let mut cache = ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves)?;
/// let mut request = |experts: [usize; 2]| {
///     let plan = cache.request(&ExpertSet::from_members(4, experts))?;
///     Ok::<_, expert_cache::CacheError>((plan.hits().len(), plan.loads().len()))
/// };
/// assert_eq!(request([0, 1])?, (0, 2));
/// assert_eq!(request([1, 2])?, (1, 1)); // 0 leaves
/// assert_eq!(request([1, 2])?, (2, 0));
/// # Ok::<(), expert_cache::CacheError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ExpertCache<P = Box<dyn EvictionPolicy>> {
    identity: CacheIdentity,
    policy: P,
    oversize: Oversize,
    misses: MissPolicy,
    residency: Residency,
    guard: Option<PhaseGuard>,
    marks: PrefetchMarks,
    /// Experts of the running wave.
    pinned: ExpertSet,
    /// What its resident experts take.
    wave_used: u64,
    /// Scratch: who may not be evicted.
    blocked: ExpertSet,
    missing: Vec<u32>,
    plan: Plan,
    /// Whether the plan can still be taken back.
    planned: bool,
    /// Prefetches since the last request.
    prefetches: Plan,
    /// Number of requests.
    clock: u64,
}

impl ExpertCache<Box<dyn EvictionPolicy>> {
    /// Creates an empty cache of `capacity` slots over a pool with a policy by name, which so is made for the same pool and
    /// capacity; `future` are the requests that the cache will see, for policies that know them.
    ///
    /// ```
    /// use expert_cache::{ExpertCache, Oversize, PolicyKind, PoolShape};
    /// let shape = PoolShape { layers: 2, experts: 8 };
    /// let cache = ExpertCache::of_kind("lfru-32".parse()?, shape, 4, Oversize::Waves, None)?;
    /// assert_eq!((cache.capacity(), cache.resident().universe()), (4, 16));
    /// # Ok::<(), expert_cache::CacheError>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`PolicyKind::build`].
    pub fn of_kind(
        kind: PolicyKind,
        shape: PoolShape,
        capacity: usize,
        oversize: Oversize,
        future: Option<&Arc<Requests>>,
    ) -> Result<ExpertCache> {
        ExpertCache::new(kind.build(shape, capacity, future)?, shape.universe(), capacity, oversize)
    }
}

impl<P: EvictionPolicy> ExpertCache<P> {
    /// Creates an empty cache of `capacity` slots over a pool of `universe` experts, whose policy was made for the same
    /// pool.
    ///
    /// # Errors
    /// [`CacheError::Capacity`] if the capacity is 0 or above the pool, [`CacheError::PolicyUniverse`] if the policy was made
    /// for another pool.
    pub fn new(policy: P, universe: usize, capacity: usize, oversize: Oversize) -> Result<ExpertCache<P>> {
        if capacity == 0 || capacity > universe {
            return Err(CacheError::Capacity { capacity, experts: universe });
        }
        ExpertCache::build(policy, ExpertSizes::uniform(universe, 1)?, capacity as u64, oversize)
    }

    /// Creates an empty cache of `capacity` bytes for experts of the given sizes.
    ///
    /// If all have one size, this is a cache of as many slots as fit. Otherwise a load may evict several experts, and a
    /// slot is but a name: there are as many as the most experts that fit ([`ExpertSizes::most_within`]), which is also the
    /// capacity to make the policy with.
    ///
    /// ```
    /// use expert_cache::{ExpertCache, ExpertSizes, Lru, Oversize};
    /// use moe_trace::ExpertSet;
    ///
    /// let sizes = ExpertSizes::each(vec![1, 1, 2])?;
    /// let mut cache = ExpertCache::in_bytes(Lru::new(3), sizes, 3, Oversize::Waves)?;
    /// cache.request(&ExpertSet::from_members(3, [0, 1]))?;
    /// let plan = cache.request(&ExpertSet::from_members(3, [2]))?;
    /// assert_eq!(plan.evicted(&plan.loads()[0])?.len(), 1); // one byte was free
    /// # Ok::<(), expert_cache::CacheError>(())
    /// ```
    ///
    /// # Errors
    /// [`CacheError::CapacityBytes`] if the largest expert does not fit, [`CacheError::PolicyUniverse`] if the policy was made
    /// for another pool.
    pub fn in_bytes(policy: P, sizes: ExpertSizes, capacity: u64, oversize: Oversize) -> Result<ExpertCache<P>> {
        if sizes.largest() > capacity {
            return Err(CacheError::CapacityBytes { capacity, largest: sizes.largest() });
        }
        ExpertCache::build(policy, sizes, capacity, oversize)
    }

    fn build(policy: P, sizes: ExpertSizes, capacity: u64, oversize: Oversize) -> Result<ExpertCache<P>> {
        let universe = sizes.universe();
        if let Some(found) = policy.universe().filter(|&found| found != universe) {
            return Err(CacheError::PolicyUniverse { policy: policy.name(), found, expected: universe });
        }
        let (mut plan, mut prefetches) = (Plan::default(), Plan::default());
        plan.reserve(universe);
        prefetches.reserve(universe);
        let identity = CacheIdentity::new();
        prefetches.begin(identity.mark(), 1);
        Ok(ExpertCache {
            identity,
            policy,
            oversize,
            misses: MissPolicy::Load,
            residency: Residency::new(sizes, capacity),
            guard: None,
            marks: PrefetchMarks::new(universe),
            pinned: ExpertSet::new(universe),
            wave_used: 0,
            blocked: ExpertSet::new(universe),
            missing: Vec::with_capacity(universe),
            plan,
            planned: false,
            prefetches,
            clock: 0,
        })
    }

    /// Serves misses in another way than by loading all.
    pub fn with_misses(mut self, misses: MissPolicy) -> ExpertCache<P> {
        self.misses = misses;
        self
    }

    /// Keeps a long prefill from flushing what decode uses; for a cache that is still empty.
    ///
    /// Prefill takes what is free, but it evicts experts that decode has used since they came only while the others take
    /// no more than `quota` slots (of a cache made [`in_bytes`](Self::in_bytes): bytes). Beyond that it evicts its own; if
    /// they are all in use, a wave ends, or under [`Oversize::Bypass`] the miss is bypassed. In waves, prefill has room for
    /// one expert whatever the quota.
    ///
    /// ```
    /// use expert_cache::{ExpertCache, Lru, Oversize, Request};
    /// use moe_trace::{ExpertSet, LayerId, Phase};
    ///
    /// let decode_hits = |guarded: bool| {
    ///     let mut cache = ExpertCache::new(Lru::new(8), 8, 4, Oversize::Waves)?;
    ///     if guarded {
    ///         cache = cache.with_prefill_quota(1)?;
    ///     }
    ///     let mut request = |experts: std::ops::Range<usize>, phase| {
    ///         let set = ExpertSet::from_members(8, experts);
    ///         Ok::<_, expert_cache::CacheError>(cache.request(Request::new(&set, LayerId(0), phase))?.hits().len())
    ///     };
    ///     request(0..4, Phase::Decode)?;
    ///     request(3..8, Phase::Prefill)?;
    ///     request(0..4, Phase::Decode)
    /// };
    /// assert_eq!((decode_hits(false)?, decode_hits(true)?), (0, 3));
    /// # Ok::<(), expert_cache::CacheError>(())
    /// ```
    ///
    /// # Errors
    /// [`CacheError::NotEmpty`] if an expert is resident: a guard must see which phase brings the experts.
    pub fn with_prefill_quota(mut self, quota: u64) -> Result<ExpertCache<P>> {
        if !self.resident().is_empty() {
            return Err(CacheError::NotEmpty { resident: self.resident().len() });
        }
        self.guard = Some(PhaseGuard::new(self.residency.universe(), quota));
        Ok(self)
    }

    /// Makes experts resident before the first request, in the given order, and returns their slots; a guard counts them as
    /// decode's.
    ///
    /// ```
    /// use expert_cache::{ExpertCache, ExpertKey, Lru, Oversize};
    /// let mut cache = ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves)?;
    /// let slots = cache.warm(&[ExpertKey(3), ExpertKey(1)])?;
    /// assert_eq!(cache.slot(ExpertKey(1)), Some(slots[1]));
    /// assert_eq!(cache.slot(ExpertKey(0)), None);
    /// # Ok::<(), expert_cache::CacheError>(())
    /// ```
    ///
    /// # Errors
    /// [`CacheError::KeyOutOfRange`], [`CacheError::ResidentTwice`], [`CacheError::NoRoom`]; then none has come.
    pub fn warm(&mut self, experts: &[ExpertKey]) -> Result<Vec<SlotId>> {
        let mut after = self.resident().clone();
        let mut bytes = self.residency.used();
        for &expert in experts {
            self.check_key(expert)?;
            if !after.insert(expert.index()) {
                return Err(CacheError::ResidentTwice { expert: expert.index() });
            }
            bytes = bytes.saturating_add(self.residency.size(expert.index()));
        }
        if bytes > self.residency.capacity() {
            return Err(CacheError::NoRoom { wanted: bytes, capacity: self.residency.capacity() });
        }
        let occupy = |&expert: &ExpertKey| {
            let slot = self.residency.occupy(expert.index());
            self.admitted(expert, true);
            slot
        };
        let slots = experts.iter().map(occupy).collect();
        #[cfg(test)]
        self.validate();
        Ok(slots)
    }

    /// The policy.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// How misses are served.
    pub fn misses(&self) -> &MissPolicy {
        &self.misses
    }

    /// The last plan; empty before the first request and after a rollback.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Number of slots: the most experts that can be resident.
    pub fn capacity(&self) -> usize {
        self.residency.slots()
    }

    /// Bytes that fit, where the cache was made [`in_bytes`](Self::in_bytes); otherwise slots.
    pub fn capacity_bytes(&self) -> u64 {
        self.residency.capacity()
    }

    /// Bytes of each expert, where the cache was made [`in_bytes`](Self::in_bytes); otherwise 1.
    pub fn sizes(&self) -> &ExpertSizes {
        self.residency.sizes()
    }

    /// The slot of an expert, if it is resident.
    pub fn slot(&self, key: ExpertKey) -> Option<SlotId> {
        (key.index() < self.residency.universe()).then(|| self.residency.slot(key.index())).flatten()
    }

    /// Resident experts.
    pub fn resident(&self) -> &ExpertSet {
        self.residency.resident()
    }

    /// Decides how a request is served, and takes the plan as executed; a bare [`ExpertSet`] is a decoded token's.
    ///
    /// # Errors
    /// [`CacheError::Universe`] if the set is another pool's, [`CacheError::NeedsMass`] if misses are served by router
    /// mass and the request has none, [`CacheError::Victim`] if the policy chose an expert that may not leave. Residents are
    /// then as before, and the next request is served.
    pub fn request<'a>(&mut self, request: impl Into<Request<'a>>) -> Result<&Plan> {
        let request = request.into();
        self.check_universe(request.wanted().universe())?;
        self.misses.check(&request)?;
        self.policy.on_request(&request);
        self.marks.advance();
        self.clock += 1;
        self.plan.begin(self.identity.mark(), 2 * self.clock);
        self.prefetches.begin(self.identity.mark(), 2 * self.clock + 1);
        self.judge(&request);
        self.pinned.copy_from(request.wanted());
        if !matches!(self.misses, MissPolicy::Load) {
            self.serve_without_loading(&request);
        }
        let missing = std::mem::take(&mut self.missing);
        let loaded = missing.iter().try_for_each(|&key| self.load(ExpertKey(key), request.phase()));
        self.missing = missing;
        self.plan.wave_ends.push(self.plan.loads.len());
        if loaded.is_err() {
            self.take_back(0, None);
        }
        self.planned = loaded.is_ok();
        #[cfg(test)]
        self.validate();
        loaded.map(|()| &self.plan)
    }

    /// Tells the policy that a sequence has ended; what is resident stays.
    pub fn sequence_end(&mut self) {
        self.policy.sequence_end();
    }

    /// Tells hits from misses.
    fn judge(&mut self, request: &Request<'_>) {
        self.wave_used = 0;
        self.missing.clear();
        for key in request.wanted().iter() {
            let expert = ExpertKey::from_index(key);
            match self.residency.slot(key) {
                Some(slot) => {
                    let size = self.residency.size(key);
                    self.wave_used += size;
                    let prefetched = self.marks.used(key);
                    self.plan.hits.push(Hit { key: expert, slot, prefetched });
                    if let Some(guard) = self.guard.as_mut().filter(|_| request.phase() == Phase::Decode) {
                        guard.claim(key, size);
                    }
                }
                None => {
                    self.missing.push(expert.0);
                    if self.marks.missed(key) {
                        self.plan.displaced.push(expert);
                    }
                }
            }
        }
    }

    pub(crate) fn check_universe(&self, found: usize) -> Result<()> {
        let expected = self.residency.universe();
        if found == expected { Ok(()) } else { Err(CacheError::Universe { found, expected }) }
    }

    fn check_key(&self, expert: ExpertKey) -> Result<()> {
        let experts = self.residency.universe();
        if expert.index() < experts {
            Ok(())
        } else {
            Err(CacheError::KeyOutOfRange { expert: expert.index(), experts })
        }
    }

    /// Asserts that nothing is lost or held twice.
    #[cfg(test)]
    pub(crate) fn validate(&self) {
        self.residency.validate();
        self.marks.validate(self.resident());
        self.policy.validate(self.resident());
        if let Some(guard) = &self.guard {
            guard.validate(self.resident(), |key| self.residency.size(key));
        }
    }
}
