//! The priority stack of a small pool in vector registers.

use super::{
    lanes::{ABSENT, LANES, Lanes, demand, narrow},
    stack::Stack,
};

/// A stack of at most `16 * R` experts.
///
/// # Complexity
/// An access costs one step for sixteen levels, down to its depth.
#[derive(Clone, Debug)]
pub(super) struct LaneStack<L: Lanes, const R: usize> {
    lanes: L,
    levels: [L::Levels; R],
    /// Demand of every expert.
    demands: [[u32; LANES]; R],
}

impl<L: Lanes, const R: usize> LaneStack<L, R> {
    /// The largest pool.
    pub(super) const EXPERTS: usize = R * LANES;

    #[inline(always)]
    pub(super) fn new(lanes: L) -> LaneStack<L, R> {
        LaneStack { lanes, levels: [lanes.splat(ABSENT); R], demands: [[ABSENT; LANES]; R] }
    }

    #[inline(always)]
    fn demand(&mut self, key: u32) -> &mut u32 {
        &mut self.demands[key as usize / LANES % R][key as usize % LANES]
    }

    /// Lets what `above` holds in every lane (0 where `top` is served) sink from the top to the level of demand `old`.
    #[inline(always)]
    fn sink_from(&mut self, mut above: L::Levels, old: L::Levels, mut top: Option<L::Levels>) {
        for levels in &mut self.levels {
            let sunk = self.lanes.sink(*levels, above, old, top.take());
            *levels = sunk.levels;
            if sunk.found != 0 {
                break;
            }
            above = sunk.below;
        }
    }
}

impl<L: Lanes, const R: usize> Stack for LaneStack<L, R> {
    #[inline(always)]
    fn judge(&mut self, keys: &[u32], mut seen: impl FnMut(usize), mut new: impl FnMut()) {
        for &key in keys {
            let demand = *self.demand(key);
            if demand == ABSENT {
                new();
                continue;
            }
            let demand = self.lanes.splat(demand);
            for (block, levels) in self.levels.chunks(4).enumerate() {
                let found = self.lanes.find_among(levels, demand);
                if R <= 4 || found != 0 {
                    seen(4 * LANES * block + found.trailing_zeros() as usize);
                    break;
                }
            }
        }
    }

    #[inline(always)]
    fn raise(&mut self, keys: &[u32], by: u64) {
        let by = narrow(by);
        for &key in keys {
            let at = self.demand(key);
            let old = *at;
            if old == ABSENT {
                continue;
            }
            *at = old - by;
            let (old, by) = (self.lanes.splat(old), self.lanes.splat(by));
            for levels in &mut self.levels {
                *levels = self.lanes.lower(*levels, old, by);
            }
        }
    }

    #[inline(always)]
    fn serve(&mut self, key: u32, priority: u64) {
        let new = demand(priority);
        // A new expert goes to the first level that is absent.
        let old = std::mem::replace(self.demand(key), new);
        let lanes = self.lanes;
        self.sink_from(lanes.splat(0), lanes.splat(old), Some(lanes.splat(new)));
    }

    #[inline(always)]
    fn rank(&mut self, key: u32, priority: u64) {
        let new = demand(priority);
        let old = std::mem::replace(self.demand(key), new);
        let (old, new) = (self.lanes.splat(old), self.lanes.splat(new));
        for levels in &mut self.levels {
            let (ranked, found) = self.lanes.rank(*levels, old, new);
            *levels = ranked;
            if found != 0 {
                break;
            }
        }
    }

    #[inline(always)]
    fn sink(&mut self, _key: u32, priority: u64) {
        let demand = self.lanes.splat(demand(priority));
        self.sink_from(demand, demand, None);
    }
}
