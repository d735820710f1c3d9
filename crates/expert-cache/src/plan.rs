//! What a cache decides for one request.

use crate::cache_identity::OfCache;
use crate::{CacheError, ExpertKey, Result, SlotId};

/// An expert that is resident already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The expert.
    pub key: ExpertKey,
    /// Where it is.
    pub slot: SlotId,
    /// Whether this is its first use since a prefetch brought it.
    pub prefetched: bool,
}

/// An expert that must be copied into a slot; [`Plan::evicted`] tells which experts leave for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The expert.
    pub key: ExpertKey,
    /// Where it goes.
    pub slot: SlotId,
    /// Its part of the plan's evictions.
    pub(crate) evictions: (u32, u32),
    /// The number of its plan, and its place there.
    pub(crate) plan: (u64, u32),
    /// The cache of its plan.
    pub(crate) cache: OfCache,
}

/// An expert that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// The expert.
    pub key: ExpertKey,
    /// Where it was.
    pub slot: SlotId,
    /// Whether a prefetch brought it and nobody used it since.
    pub unused: bool,
    /// Whether it was held for a request to come.
    pub(crate) held: bool,
    /// Whether a phase guard kept it for decode.
    pub(crate) kept_for_decode: bool,
}

/// An expert that is left out, or replaced by another: what-if only, for it changes what the model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The expert.
    pub key: ExpertKey,
    /// The resident expert that takes its place.
    pub substitute: Option<Substitute>,
}

/// A resident expert that takes the place of a missing one; it stays in its slot while the first wave is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Substitute {
    /// The expert.
    pub key: ExpertKey,
    /// Where it is.
    pub slot: SlotId,
}

/// Decisions for one request: every wanted expert is hit, loaded, bypassed or skipped, exactly once.
///
/// The plan is executed wave by wave. Experts of a wave are resident together; a later wave may load into a slot of an
/// earlier one. All hits belong to the first wave. Bypassed experts are served without a slot.
///
/// If all experts are of one size, a load evicts at most one expert and takes its slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Different for all plans of a cache.
    number: u64,
    cache: OfCache,
    pub(crate) hits: Vec<Hit>,
    pub(crate) loads: Vec<Load>,
    /// Those of the first load, then those of the second, and so on.
    pub(crate) evictions: Vec<Eviction>,
    /// End of each wave among the loads; at least one wave.
    pub(crate) wave_ends: Vec<usize>,
    pub(crate) bypasses: Vec<ExpertKey>,
    pub(crate) skips: Vec<Skip>,
    pub(crate) displaced: Vec<ExpertKey>,
}

impl Plan {
    /// Experts resident before the request, in ascending order.
    pub fn hits(&self) -> &[Hit] {
        &self.hits
    }

    /// Experts to load, in order of execution.
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    /// Experts that leave, in order of execution.
    pub fn evictions(&self) -> &[Eviction] {
        &self.evictions
    }

    /// Experts that leave for one load of this plan.
    ///
    /// ```
    /// use expert_cache::{CacheError, ExpertCache, Lru, Oversize};
    /// use moe_trace::ExpertSet;
    ///
    /// let mut cache = ExpertCache::new(Lru::new(4), 4, 1, Oversize::Waves)?;
    /// let first = cache.request(&ExpertSet::from_members(4, [2]))?.loads()[0];
    /// let plan = cache.request(&ExpertSet::from_members(4, [3]))?;
    /// assert_eq!(plan.evicted(&plan.loads()[0])?[0].key, first.key);
    /// assert!(matches!(plan.evicted(&first), Err(CacheError::OtherPlan { expert: 2 })));
    /// # Ok::<(), CacheError>(())
    /// ```
    ///
    /// # Errors
    /// [`CacheError::OtherPlan`] if the load is of another plan: of another cache, or of its clone, of an earlier request of
    /// this cache, or of a request that was taken back.
    pub fn evicted(&self, load: &Load) -> Result<&[Eviction]> {
        let own = self.loads.get(load.plan.1 as usize).filter(|own| *own == load && own.cache.is(load.cache));
        own.map(|own| self.of(own)).ok_or(CacheError::OtherPlan { expert: load.key.index() })
    }

    /// Experts that leave for a load that is known to be of this plan.
    pub(crate) fn of(&self, load: &Load) -> &[Eviction] {
        let (start, end) = load.evictions;
        &self.evictions[start as usize..end as usize]
    }

    /// Loads of each wave; the first wave also has all hits.
    pub fn waves(&self) -> impl Iterator<Item = &[Load]> {
        let starts = std::iter::once(0).chain(self.wave_ends.iter().copied());
        starts.zip(&self.wave_ends).map(|(start, &end)| &self.loads[start..end])
    }

    /// Experts served without being resident.
    pub fn bypasses(&self) -> &[ExpertKey] {
        &self.bypasses
    }

    /// Experts left out or replaced.
    pub fn skips(&self) -> &[Skip] {
        &self.skips
    }

    /// Misses of experts that were absent because a prefetch had evicted them.
    pub fn displaced(&self) -> &[ExpertKey] {
        &self.displaced
    }

    /// Makes room for the largest plan of a pool.
    pub(crate) fn reserve(&mut self, universe: usize) {
        self.hits.reserve(universe);
        self.loads.reserve(universe);
        self.evictions.reserve(universe);
        self.wave_ends.reserve(universe + 1);
        self.bypasses.reserve(universe);
        self.skips.reserve(universe);
        self.displaced.reserve(universe);
    }

    pub(crate) fn clear(&mut self) {
        self.hits.clear();
        self.loads.clear();
        self.evictions.clear();
        self.wave_ends.clear();
        self.bypasses.clear();
        self.skips.clear();
        self.displaced.clear();
    }

    /// Begins an empty plan.
    pub(crate) fn begin(&mut self, cache: OfCache, number: u64) {
        self.clear();
        (self.cache, self.number) = (cache, number);
    }

    /// Adds a load whose evictions are those from `first` on.
    pub(crate) fn push_load(&mut self, key: ExpertKey, slot: SlotId, first: usize) -> Load {
        let place = |index: usize| u32::try_from(index).expect("a pool has at most 2^24 experts");
        let evictions = (place(first), place(self.evictions.len()));
        let load = Load { key, slot, evictions, plan: (self.number, place(self.loads.len())), cache: self.cache };
        self.loads.push(load);
        load
    }
}
