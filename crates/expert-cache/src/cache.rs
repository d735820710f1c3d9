//! Turns requests into plans.

use moe_trace::ExpertSet;

use crate::{CacheError, EvictionPolicy, ExpertKey, Hit, Load, Plan, Request, Result, SlotId};

/// What happens to a request that is larger than the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Oversize {
    /// It is served in waves; a later wave may evict experts of an earlier one.
    Waves,
    /// What does not fit is bypassed.
    Bypass,
}

/// A cache of `capacity` slots for the experts of one pool.
///
/// Rules: a request is judged as a whole on the state before it; nothing of a wave is evicted while the wave is served;
/// free slots are used before anything is evicted.
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
pub struct ExpertCache<P> {
    policy: P,
    capacity: usize,
    oversize: Oversize,
    slot_of: Vec<Option<SlotId>>,
    resident: ExpertSet,
    free: Vec<SlotId>,
    /// Experts of the running wave.
    pinned: ExpertSet,
    missing: Vec<usize>,
    plan: Plan,
}

impl<P: EvictionPolicy> ExpertCache<P> {
    /// Creates an empty cache of `capacity` slots over a pool of `universe` experts, whose policy was made for the same
    /// pool.
    ///
    /// # Errors
    /// [`CacheError::Capacity`] if the capacity is 0 or above the pool.
    pub fn new(policy: P, universe: usize, capacity: usize, oversize: Oversize) -> Result<ExpertCache<P>> {
        if capacity == 0 || capacity > universe {
            return Err(CacheError::Capacity { capacity, experts: universe });
        }
        let slots = u32::try_from(capacity).map_err(|_| CacheError::Capacity { capacity, experts: universe })?;
        Ok(ExpertCache {
            policy,
            capacity,
            oversize,
            slot_of: vec![None; universe],
            resident: ExpertSet::new(universe),
            free: (0..slots).rev().map(SlotId).collect(),
            pinned: ExpertSet::new(universe),
            missing: Vec::new(),
            plan: Plan::default(),
        })
    }

    /// Number of slots.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Resident experts.
    pub fn resident(&self) -> &ExpertSet {
        &self.resident
    }

    /// Decides how a request is served, and takes the plan as executed; a bare [`ExpertSet`] is a decoded token's.
    ///
    /// # Errors
    /// [`CacheError::Universe`] if the set is another pool's.
    pub fn request<'a>(&mut self, request: impl Into<Request<'a>>) -> Result<&Plan> {
        let request = request.into();
        let wanted = request.wanted();
        if wanted.universe() != self.slot_of.len() {
            return Err(CacheError::Universe { found: wanted.universe(), expected: self.slot_of.len() });
        }
        self.policy.step(&request);
        self.plan.clear();
        let mut missing = std::mem::take(&mut self.missing);
        missing.clear();
        for key in wanted.iter() {
            match self.slot_of[key] {
                Some(slot) => self.plan.hits.push(Hit { key: ExpertKey::from_index(key), slot }),
                None => missing.push(key),
            }
        }
        self.pinned.copy_from(wanted);
        let mut served_in_wave = self.plan.hits.len();
        for &key in &missing {
            if served_in_wave == self.capacity && self.oversize == Oversize::Waves {
                self.plan.wave_ends.push(self.plan.loads.len());
                self.pinned.clear();
                served_in_wave = 0;
            }
            self.pinned.insert(key);
            match self.place(ExpertKey::from_index(key)) {
                Some(load) => {
                    self.plan.loads.push(load);
                    served_in_wave += 1;
                }
                None => self.plan.bypasses.push(ExpertKey::from_index(key)),
            }
        }
        self.plan.wave_ends.push(self.plan.loads.len());
        self.missing = missing;
        #[cfg(test)]
        self.validate();
        Ok(&self.plan)
    }

    /// Tells the policy that a sequence has ended; what is resident stays.
    pub fn sequence_end(&mut self) {
        self.policy.sequence_end();
    }

    /// Takes back what the execution of the last plan did not achieve: its loads before `loaded` were executed,
    /// `loads[loaded]` failed and left its slot undefined, the later ones were not tried.
    ///
    /// The policy has seen the request all the same; one that knows the future is from then on a request ahead of a
    /// caller that tries it again.
    pub fn rollback(&mut self, loaded: usize) {
        let plan = std::mem::take(&mut self.plan);
        for (number, load) in plan.loads.iter().enumerate().skip(loaded).rev() {
            self.vacate(load.key);
            match load.evicted.filter(|_| number > loaded) {
                Some(evicted) => self.occupy(evicted, load.slot),
                None => self.free.push(load.slot),
            }
        }
        #[cfg(test)]
        self.validate();
    }

    fn place(&mut self, key: ExpertKey) -> Option<Load> {
        let (slot, evicted) = match self.free.pop() {
            Some(slot) => (slot, None),
            None => {
                let victim = self.policy.victim(&self.pinned)?;
                (self.vacate(victim)?, Some(victim))
            }
        };
        self.occupy(key, slot);
        Some(Load { key, slot, evicted })
    }

    fn occupy(&mut self, key: ExpertKey, slot: SlotId) {
        self.slot_of[key.index()] = Some(slot);
        self.resident.insert(key.index());
        self.policy.admit(key);
    }

    fn vacate(&mut self, key: ExpertKey) -> Option<SlotId> {
        let slot = self.slot_of[key.index()].take()?;
        self.resident.remove(key.index());
        self.policy.forget(key);
        Some(slot)
    }

    /// Asserts that every slot is free or holds exactly one expert.
    #[cfg(test)]
    pub(crate) fn validate(&self) {
        let mut slots: Vec<SlotId> = self.slot_of.iter().flatten().chain(&self.free).copied().collect();
        slots.sort_unstable();
        let all: Vec<SlotId> = (0..).take(self.capacity).map(SlotId).collect();
        assert_eq!(slots, all, "a slot is lost or taken twice");
        let resident: Vec<usize> = (0..self.slot_of.len()).filter(|&key| self.slot_of[key].is_some()).collect();
        assert_eq!(self.resident.iter().collect::<Vec<_>>(), resident);
    }
}
