//! The priority stack: one order that holds the content of every capacity.

use std::hint::select_unpredictable;

const ABSENT: u32 = u32::MAX;

/// The experts seen so far, ordered so that the first `c` are what a cache of `c` slots holds.
///
/// Serving an expert puts it on top. What it displaces sinks: at each level the one of lower priority sinks on, down to
/// the old place of the served expert (or the bottom, for a new one). At level `c` the one that sinks on is the lowest
/// of what `c` slots held, that is, the one that a cache of `c` slots evicts (Mattson et al., 1970).
#[derive(Clone, Debug, Default)]
pub(super) struct PriorityStack {
    order: Vec<u32>,
    /// Level of every expert when [`settle`](PriorityStack::settle) was last called.
    place: Vec<u32>,
}

impl PriorityStack {
    /// Empties the stack for a pool of `pool` experts.
    pub(super) fn reset(&mut self, pool: usize) {
        self.order.clear();
        self.order.reserve(pool);
        self.place.clear();
        self.place.resize(pool, ABSENT);
    }

    /// Notes where every expert stands; called before each token.
    #[inline]
    pub(super) fn settle(&mut self) {
        for (level, &key) in (0..).zip(&self.order) {
            self.place[key as usize] = level;
        }
    }

    /// Number of distinct experts seen.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Depth of an expert before the token: it was resident at capacities above this; `None` if it was never seen.
    #[inline]
    pub(super) fn depth(&self, key: u32) -> Option<usize> {
        let place = self.place[key as usize];
        (place != ABSENT).then_some(place as usize)
    }

    /// Serves an expert, at most once a token; among the others the one of lower `rank` sinks.
    #[inline]
    pub(super) fn serve(&mut self, key: u32, rank: &[u64]) {
        self.admit(key);
        let mut levels = self.order.iter_mut();
        let Some(top) = levels.next() else { return };
        let mut sinking = std::mem::replace(top, key);
        if sinking == key {
            return;
        }
        let mut sinking_rank = rank[sinking as usize];
        for slot in levels {
            let here = *slot;
            if here == key {
                *slot = sinking;
                return;
            }
            // Which of the two sinks is close to a coin toss.
            let here_rank = rank[here as usize];
            let swap = here_rank < sinking_rank;
            *slot = select_unpredictable(swap, sinking, here);
            sinking = select_unpredictable(swap, here, sinking);
            sinking_rank = select_unpredictable(swap, here_rank, sinking_rank);
        }
    }

    /// Serves an expert under recency, where what is displaced always sinks.
    #[inline]
    pub(super) fn serve_recent(&mut self, key: u32) {
        self.admit(key);
        let mut sinking = key;
        for slot in &mut self.order {
            sinking = std::mem::replace(slot, sinking);
            if sinking == key {
                return;
            }
        }
    }

    /// Gives a new expert a level at the bottom.
    #[inline]
    fn admit(&mut self, key: u32) {
        if self.place[key as usize] == ABSENT {
            self.order.push(key);
        }
    }
}
