//! The priority stack: one order that holds the content of every capacity.

const ABSENT: u32 = u32::MAX;

/// The experts seen so far, ordered so that the first `c` are what a cache of `c` slots holds.
///
/// Serving an expert puts it on top. What it displaces sinks: at each level the one of lower priority sinks on, down to
/// the old place of the served expert (or the bottom, for a new one). At level `c` the one that sinks on is the lowest
/// of what `c` slots held, that is, the one that a cache of `c` slots evicts (Mattson et al., 1970).
#[derive(Clone, Debug, Default)]
pub(super) struct PriorityStack {
    order: Vec<u32>,
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

    /// Number of distinct experts seen.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// Depth of an expert: it is resident at capacities above this; `None` if it was never seen.
    #[inline]
    pub(super) fn depth(&self, key: u32) -> Option<usize> {
        let place = self.place[key as usize];
        (place != ABSENT).then_some(place as usize)
    }

    /// Serves an expert; among the others the one of lower `rank` sinks.
    #[inline]
    pub(super) fn serve(&mut self, key: u32, rank: &[u64]) {
        let end = self.open(key);
        if end == 0 {
            return;
        }
        let mut sinking = std::mem::replace(&mut self.order[0], key);
        let mut sinking_rank = rank[sinking as usize];
        self.place[key as usize] = 0;
        let mut level = 1;
        for slot in &mut self.order[1..end] {
            let here = *slot;
            let here_rank = rank[here as usize];
            // Selects, not branches: which of the two sinks is close to a coin toss.
            let swap = here_rank < sinking_rank;
            let stays = if swap { sinking } else { here };
            sinking = if swap { here } else { sinking };
            sinking_rank = here_rank.min(sinking_rank);
            *slot = stays;
            self.place[stays as usize] = level;
            level += 1;
        }
        self.order[end] = sinking;
        self.place[sinking as usize] = level;
    }

    /// Serves an expert under recency, where what is displaced always sinks.
    #[inline]
    pub(super) fn serve_recent(&mut self, key: u32) {
        let end = self.open(key);
        self.order.copy_within(..end, 1);
        self.order[0] = key;
        let mut level = 0;
        for &moved in &self.order[..=end] {
            self.place[moved as usize] = level;
            level += 1;
        }
    }

    /// Level that serving `key` leaves free; a new expert gets a level at the bottom.
    #[inline]
    fn open(&mut self, key: u32) -> usize {
        match self.depth(key) {
            Some(depth) => depth,
            None => {
                self.order.push(key);
                if self.order.len() == 1 {
                    self.place[key as usize] = 0;
                }
                self.order.len() - 1
            }
        }
    }
}
