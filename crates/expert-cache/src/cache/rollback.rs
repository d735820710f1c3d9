//! Taking back what could not be executed.

use super::ExpertCache;
use crate::{CacheError, Eviction, EvictionPolicy, ExpertKey, Result, SlotId};

impl<P: EvictionPolicy> ExpertCache<P> {
    /// Takes back what the execution of the last plan did not achieve: its loads before `loaded` were executed,
    /// `loads[loaded]` failed and left its slot undefined, the later ones were not tried.
    ///
    /// Prefetches planned since then stay; an expert whose slot one of them has taken does not come back. The policy has
    /// seen the request all the same; one that knows the future is from then on a request ahead of a caller that tries it
    /// again.
    ///
    /// # Errors
    /// [`CacheError::NoPlan`] before the first request and if the plan was taken back already, [`CacheError::Loaded`] if the
    /// plan has fewer loads; nothing is taken back then.
    pub fn rollback(&mut self, loaded: usize) -> Result<()> {
        let loads = self.plan.loads.len();
        if !self.planned {
            return Err(CacheError::NoPlan);
        }
        if loaded > loads {
            return Err(CacheError::Loaded { loaded, loads });
        }
        self.planned = false;
        self.take_back(loaded, Some(loaded));
        #[cfg(test)]
        self.validate();
        Ok(())
    }

    /// Takes back the loads of the plan from `loaded` on; of them `failed` has overwritten its slot.
    pub(super) fn take_back(&mut self, loaded: usize, failed: Option<usize>) {
        let plan = std::mem::take(&mut self.plan);
        for (number, load) in plan.loads.iter().enumerate().skip(loaded).rev() {
            if self.residency.slot(load.key.index()) == Some(load.slot) {
                self.evict(load.key);
            }
            if failed != Some(number) {
                plan.of(load).iter().rev().for_each(|eviction| self.restore(eviction));
            }
        }
        for hit in plan.hits.iter().filter(|hit| hit.prefetched) {
            if self.residency.slot(hit.key.index()).is_some() {
                self.marks.restore_unused(hit.key.index());
            }
        }
        for &key in &plan.displaced {
            if self.residency.slot(key.index()).is_none() {
                self.marks.displace(key.index());
            }
        }
        self.plan = plan;
        self.plan.clear();
    }

    /// Takes an expert out of a slot whose load failed, such as that of a prefetch; what left for it stays away. `None` if the
    /// expert is not in that slot any more.
    ///
    /// This is right at any time, also when other requests have been made since the load was planned.
    ///
    /// ```
    /// use expert_cache::{ExpertCache, ExpertKey, Lru, Oversize};
    /// use moe_trace::{ExpertSet, Phase};
    ///
    /// let mut cache = ExpertCache::new(Lru::new(4), 4, 2, Oversize::Waves)?;
    /// let load = cache.prefetch(ExpertKey(3), Phase::Decode, 1)?.expect("there is room");
    /// cache.request(&ExpertSet::from_members(4, [0]))?;
    /// assert!(cache.forget(load.key, load.slot).is_some_and(|gone| gone.unused));
    /// assert_eq!(cache.resident().iter().collect::<Vec<_>>(), [0]);
    /// # Ok::<(), expert_cache::CacheError>(())
    /// ```
    pub fn forget(&mut self, key: ExpertKey, slot: SlotId) -> Option<Eviction> {
        let there = key.index() < self.residency.universe() && self.residency.slot(key.index()) == Some(slot);
        let gone = there.then(|| self.evict(key)).flatten();
        #[cfg(test)]
        self.validate();
        gone
    }
}
