//! The priority stack of a large pool, sixteen levels at a time.

use super::{
    lanes::{ABSENT, LANES, Lanes, demand, narrow},
    stack::Stack,
};

/// Levels that share a bound on their demands.
const BLOCK: usize = 4 * LANES;

/// A stack over a pool of any size.
///
/// A block of levels that what sinks passes without being exchanged is stepped over in one comparison.
///
/// # Complexity
/// An access costs four steps a block where something is exchanged and one a block elsewhere, down to its depth, and as
/// much to find its level. Memory is `O(pool)`.
#[derive(Clone, Debug)]
pub(super) struct WideStack<L: Lanes> {
    lanes: L,
    levels: Vec<[L::Levels; 4]>,
    /// For every block of levels a bound that none of its demands is above.
    ceilings: Vec<u32>,
    experts: Vec<Expert>,
    distinct: usize,
}

#[derive(Clone, Copy, Debug)]
struct Expert {
    demand: u32,
    /// The block of its level when the token was judged.
    block: u32,
}

impl<L: Lanes> WideStack<L> {
    pub(super) fn new(lanes: L) -> WideStack<L> {
        WideStack { lanes, levels: Vec::new(), ceilings: Vec::new(), experts: Vec::new(), distinct: 0 }
    }

    pub(super) fn lanes(&self) -> L {
        self.lanes
    }

    /// Empties the stack for a pool of `pool` experts.
    pub(super) fn reset(&mut self, pool: usize) {
        let blocks = pool.div_ceil(BLOCK);
        self.levels.clear();
        self.levels.resize(blocks, [self.lanes.splat(ABSENT); 4]);
        self.ceilings.clear();
        self.ceilings.resize(blocks, 0);
        self.experts.clear();
        self.experts.resize(pool, Expert { demand: ABSENT, block: 0 });
        self.distinct = 0;
    }

    /// The block of an expert that was seen, and its levels there.
    #[inline(always)]
    fn find(&self, demand: u32) -> (u32, u64) {
        let wanted = self.lanes.splat(demand);
        for (block, (levels, &ceiling)) in (0..).zip(self.levels.iter().zip(&self.ceilings)) {
            if demand <= ceiling {
                let found = self.lanes.find_among(levels, wanted);
                if found != 0 {
                    return (block, found);
                }
            }
        }
        unreachable!("an expert that was seen has a level")
    }

    /// Lets `sinking` (0 where `top` is served) sink from the top to the level of demand `old`, which is not above block
    /// `first`.
    #[inline(always)]
    fn sink_from(&mut self, mut sinking: u32, old: u32, first: usize, top: Option<u32>) {
        let lanes = self.lanes;
        let old = lanes.splat(old);
        let mut above = lanes.splat(sinking);
        if let Some(top) = top {
            self.ceilings[0] = self.ceilings[0].max(top);
        }
        let mut top = top.map(|top| lanes.splat(top));
        for (block, (levels, ceiling)) in self.levels.iter_mut().zip(&mut self.ceilings).enumerate() {
            if block < first && sinking >= *ceiling {
                continue;
            }
            for levels in levels.iter_mut() {
                let sunk = lanes.sink(*levels, above, old, top.take());
                *levels = sunk.levels;
                if sunk.found != 0 {
                    // What sank into the block stays there.
                    *ceiling = sinking.max(*ceiling);
                    return;
                }
                above = sunk.below;
            }
            sinking = lanes.first(above);
            *ceiling = lanes.most(*levels);
        }
    }
}

impl<L: Lanes> Stack for WideStack<L> {
    #[inline(always)]
    fn judge(&mut self, keys: &[u32], mut seen: impl FnMut(usize), mut new: impl FnMut()) {
        for &key in keys {
            let demand = self.experts[key as usize].demand;
            if demand == ABSENT {
                new();
                continue;
            }
            let (block, found) = self.find(demand);
            self.experts[key as usize].block = block;
            seen(BLOCK * block as usize + found.trailing_zeros() as usize);
        }
    }

    #[inline(always)]
    fn raise(&mut self, keys: &[u32], by: u64) {
        let by = narrow(by);
        for &key in keys {
            let old = self.experts[key as usize].demand;
            if old == ABSENT {
                continue;
            }
            let (block, _) = self.find(old);
            self.experts[key as usize].demand = old - by;
            let (old, by) = (self.lanes.splat(old), self.lanes.splat(by));
            for levels in &mut self.levels[block as usize] {
                *levels = self.lanes.lower(*levels, old, by);
            }
        }
    }

    #[inline(always)]
    fn serve(&mut self, key: u32, priority: u64) {
        let new = demand(priority);
        let expert = &mut self.experts[key as usize];
        let old = std::mem::replace(&mut expert.demand, new);
        // Within a token an expert only sinks, so it is not above the block it was in when the token was judged.
        let first = if old == ABSENT { self.distinct / BLOCK } else { expert.block as usize };
        self.distinct += usize::from(old == ABSENT);
        self.sink_from(0, old, first, Some(new));
    }

    #[inline(always)]
    fn rank(&mut self, key: u32, priority: u64) {
        let new = demand(priority);
        let expert = &mut self.experts[key as usize];
        let old = std::mem::replace(&mut expert.demand, new);
        if old == ABSENT {
            expert.block = narrow((self.distinct / BLOCK) as u64);
            self.distinct += 1;
        }
        let block = expert.block as usize;
        self.ceilings[block] = self.ceilings[block].max(new);
        let (demanded, new) = (self.lanes.splat(old), self.lanes.splat(new));
        for levels in &mut self.levels[block] {
            let (ranked, found) = self.lanes.rank(*levels, demanded, new);
            *levels = ranked;
            if found != 0 {
                break;
            }
        }
    }

    #[inline(always)]
    fn sink(&mut self, key: u32, priority: u64) {
        let demand = demand(priority);
        self.sink_from(demand, demand, self.experts[key as usize].block as usize, None);
    }
}
