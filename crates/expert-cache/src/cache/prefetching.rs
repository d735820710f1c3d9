//! Loading experts before they are wanted.

use moe_trace::Phase;

use super::ExpertCache;
use crate::{EvictionPolicy, ExpertKey, Load, Plan, Result};

impl<P: EvictionPolicy> ExpertCache<P> {
    /// Decides to load an expert that is not wanted yet, and takes the load as executed; `None` if it is resident already
    /// or nobody may leave for it, as before [`release`](Self::release) where the running request uses every slot.
    ///
    /// The expert, loaded or there already, is held until it is used or `within` more requests have been made of this cache:
    /// no prefetch evicts it, and a load only if nobody else can go. A prefetch also leaves the running request's last wave
    /// alone, until [`release`](Self::release). `phase` is that of the tokens being served; a guard treats a prefetch as a
    /// load, but without waves.
    ///
    /// ```
    /// use expert_cache::{ExpertCache, ExpertKey, Lru, Oversize};
    /// use moe_trace::{ExpertSet, Phase};
    ///
    /// let mut cache = ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves)?;
    /// cache.request(&ExpertSet::from_members(4, [0]))?;
    /// assert!(cache.prefetch(ExpertKey(3), Phase::Decode, 1)?.is_some());
    /// assert!(cache.prefetch(ExpertKey(2), Phase::Decode, 1)?.is_none()); // 0 is in use, 3 is expected
    /// assert!(cache.request(&ExpertSet::from_members(4, [3]))?.hits()[0].prefetched);
    /// # Ok::<(), expert_cache::CacheError>(())
    /// ```
    ///
    /// # Errors
    /// [`CacheError::KeyOutOfRange`](crate::CacheError::KeyOutOfRange), [`CacheError::Victim`](crate::CacheError::Victim) if the
    /// policy chose an expert that may not leave; residents are then as before.
    pub fn prefetch(&mut self, key: ExpertKey, phase: Phase, within: usize) -> Result<Option<Load>> {
        self.check_key(key)?;
        if self.residency.slot(key.index()).is_some() {
            self.marks.hold(key.index(), within);
            return Ok(None);
        }
        if !self.policy.should_admit(key) {
            return Ok(None);
        }
        let size = self.residency.size(key.index());
        let first = self.prefetches.evictions.len();
        while !self.residency.has_room(size) {
            let guarded = self.is_guarded(key, phase);
            let victim = if self.block(guarded, true) { self.checked_victim(key, true) } else { Ok(None) };
            let evicted = victim.map(|victim| victim.and_then(|victim| self.evict(victim)));
            let Ok(Some(eviction)) = evicted else {
                let mut prefetches = std::mem::take(&mut self.prefetches);
                prefetches.evictions.drain(first..).rev().for_each(|eviction| self.restore(&eviction));
                self.prefetches = prefetches;
                return evicted.map(|_| None);
            };
            self.marks.displace(eviction.key.index());
            self.prefetches.evictions.push(eviction);
        }
        let slot = self.residency.occupy(key.index());
        self.admitted(key, phase == Phase::Decode);
        self.marks.prefetched(key.index());
        self.marks.hold(key.index(), within);
        let load = self.prefetches.push_load(key, slot, first);
        #[cfg(test)]
        self.validate();
        Ok(Some(load))
    }

    /// Loads and evictions of the prefetches since the last request.
    pub fn prefetches(&self) -> &Plan {
        &self.prefetches
    }

    /// Tells that the last request has been executed: a prefetch may evict its experts.
    pub fn release(&mut self) {
        self.pinned.clear();
    }

    /// Experts that were prefetched, are resident and have not been used since, in ascending order.
    pub fn unused(&self) -> impl Iterator<Item = ExpertKey> + '_ {
        self.marks.unused().map(ExpertKey::from_index)
    }
}
