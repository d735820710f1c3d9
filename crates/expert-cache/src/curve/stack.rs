//! The priority stack: one order that holds the content of every capacity.

use std::hint::select_unpredictable;

/// Levels that share a bound on their priorities.
const BLOCK: usize = 64;

/// The experts seen so far, ordered so that the first `c` are what a cache of `c` slots holds.
///
/// Serving an expert puts it on top. What it displaces sinks: at each level the one of lower priority sinks on, down to
/// the old place of the served expert (or the bottom, for a new one). At level `c` the one that sinks on is the lowest
/// of what `c` slots held, that is, the one that a cache of `c` slots evicts (Mattson et al., 1970).
///
/// A cache that need not load what it misses keeps the `c` experts of highest priority out of what it held and what the
/// token used. If `c + 1` slots hold what `c` slots hold, then the lowest of the larger set, with the newcomer, is either
/// not in the smaller or its lowest, too. So the same order serves all capacities, but a served expert does not go on top:
/// it sinks from there by its own priority like any other.
pub(super) trait Stack {
    /// Judges the accesses of a token on the state before it: calls `seen(depth)` for an expert that was resident at
    /// capacities above `depth`, and `new()` for one never seen. Called once before the others for each token.
    fn judge(&mut self, keys: &[u32], seen: impl FnMut(usize), new: impl FnMut());

    /// Raises the priorities of those of the experts that were seen.
    fn raise(&mut self, keys: &[u32], by: u64);

    /// Serves an expert, at most once a token, and gives it a priority that no other has (or 0 if never used again).
    fn serve(&mut self, key: u32, priority: u64);

    /// Gives an expert a priority where it is, and a level below all others to one never seen. For the experts of a token
    /// in order, before any of them is served.
    fn rank(&mut self, key: u32, priority: u64);

    /// Serves an expert that has this priority, at most once a token, by letting it sink from the top.
    fn sink(&mut self, key: u32, priority: u64);
}

const ABSENT: u32 = u32::MAX;

/// A stack over a pool of any size with priorities of any width, for any processor.
///
/// A block of levels that what sinks passes without being exchanged is stepped over in one comparison.
///
/// # Complexity
/// An access costs one step a level of the blocks where something is exchanged, and one a block elsewhere, down to its
/// depth; a token also one a level of the stack, to note where every expert stands. Memory is `O(pool)`.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockStack {
    keys: Vec<u32>,
    /// Priority at every level.
    priorities: Vec<u64>,
    /// For every block of levels a bound that none of its priorities is below.
    floors: Vec<u64>,
    /// Level of every expert when the token was judged.
    place: Vec<u32>,
}

impl BlockStack {
    /// Empties the stack for a pool of `pool` experts.
    pub(super) fn reset(&mut self, pool: usize) {
        self.keys.clear();
        self.keys.reserve(pool);
        self.priorities.clear();
        self.priorities.reserve(pool);
        self.floors.clear();
        self.floors.reserve(pool.div_ceil(BLOCK));
        self.place.clear();
        self.place.resize(pool, ABSENT);
    }

    /// Gives a new expert a level at the bottom, below what any expert has.
    fn admit(&mut self, key: u32) -> usize {
        let level = self.keys.len();
        self.keys.push(key);
        self.priorities.push(0);
        if level.is_multiple_of(BLOCK) {
            self.floors.push(0);
        }
        level
    }

    /// Lets `sinking` of priority `low` sink from level `top` to the level of `key`, which was `place` or above when the
    /// token was judged.
    fn sink_from(&mut self, top: usize, mut sinking: u32, mut low: u64, key: u32, place: usize) {
        let blocks = self.keys.chunks_mut(BLOCK).zip(self.priorities.chunks_mut(BLOCK)).zip(&mut self.floors);
        for (block, ((keys, priorities), floor)) in blocks.enumerate() {
            if block < place / BLOCK && low <= *floor {
                continue;
            }
            let first = if block == 0 { top } else { 0 };
            let mut least = priorities[..first].iter().copied().min().unwrap_or(u64::MAX);
            for (slot, at) in keys.iter_mut().zip(priorities.iter_mut()).skip(first) {
                if *slot == key {
                    (*slot, *at) = (sinking, low);
                    *floor = low.min(*floor);
                    return;
                }
                // Which of the two sinks is close to a coin toss.
                let swap = *at < low;
                let (here, stays) = (*slot, (*at).max(low));
                low = low.min(*at);
                *slot = select_unpredictable(swap, sinking, here);
                sinking = select_unpredictable(swap, here, sinking);
                *at = stays;
                least = least.min(stays);
            }
            *floor = least;
        }
    }
}

impl Stack for BlockStack {
    fn judge(&mut self, keys: &[u32], mut seen: impl FnMut(usize), mut new: impl FnMut()) {
        for (level, &key) in (0..).zip(&self.keys) {
            self.place[key as usize] = level;
        }
        for &key in keys {
            match self.place[key as usize] {
                ABSENT => new(),
                place => seen(place as usize),
            }
        }
    }

    fn raise(&mut self, keys: &[u32], by: u64) {
        for &key in keys {
            let place = self.place[key as usize];
            if place != ABSENT {
                self.priorities[place as usize] += by;
            }
        }
    }

    fn serve(&mut self, key: u32, priority: u64) {
        // Within a token an expert only sinks, so its level when the token was judged is a bound from above.
        let place = match self.place[key as usize] {
            ABSENT => self.admit(key),
            place => place as usize,
        };
        let sinking = std::mem::replace(&mut self.keys[0], key);
        let low = std::mem::replace(&mut self.priorities[0], priority);
        self.floors[0] = self.floors[0].min(priority);
        if sinking != key {
            self.sink_from(1, sinking, low, key, place);
        }
    }

    fn rank(&mut self, key: u32, priority: u64) {
        let place = match self.place[key as usize] {
            ABSENT => self.admit(key),
            place => place as usize,
        };
        self.place[key as usize] = u32::try_from(place).expect("a level is below the number of keys");
        self.priorities[place] = priority;
        let floor = &mut self.floors[place / BLOCK];
        *floor = priority.min(*floor);
    }

    fn sink(&mut self, key: u32, priority: u64) {
        self.sink_from(0, key, priority, key, self.place[key as usize] as usize);
    }
}
