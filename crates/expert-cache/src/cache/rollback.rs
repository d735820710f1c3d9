//! Taking back what could not be executed.

use super::ExpertCache;
use crate::{Eviction, EvictionPolicy, ExpertKey, Plan, SlotId};

impl<P: EvictionPolicy> ExpertCache<P> {
    /// Takes back what the execution of the last plan did not achieve: its loads before `loaded` were executed,
    /// `loads[loaded]` failed and left its slot undefined, the later ones were not tried.
    ///
    /// Prefetches planned since then stay; an expert whose slot one of them has taken does not come back. The policy has
    /// seen the request all the same; one that knows the future is from then on a request ahead of a caller that tries it
    /// again.
    pub fn rollback(&mut self, loaded: usize) {
        let plan = std::mem::take(&mut self.plan);
        self.take_back(&plan, loaded);
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
        #[cfg(test)]
        self.validate();
    }

    /// Takes back prefetches since the last request: those before `loaded` were executed, `loads[loaded]` failed and left
    /// its slot undefined, the later ones were not tried.
    pub fn rollback_prefetches(&mut self, loaded: usize) {
        let prefetches = std::mem::take(&mut self.prefetches);
        self.take_back(&prefetches, loaded);
        self.prefetches = prefetches;
        self.prefetches.clear();
        #[cfg(test)]
        self.validate();
    }

    /// Takes an expert out of a slot whose load failed after others had been planned; who left for it stays away. `None` if
    /// it is not in that slot any more.
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

    fn take_back(&mut self, plan: &Plan, loaded: usize) {
        for (number, load) in plan.loads.iter().enumerate().skip(loaded).rev() {
            if self.residency.slot(load.key.index()) == Some(load.slot) {
                self.evict(load.key);
            }
            if number > loaded {
                plan.evicted(load).iter().rev().for_each(|eviction| self.restore(eviction));
            }
        }
    }
}
