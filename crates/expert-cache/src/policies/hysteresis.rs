//! Loads only what has earned it, and keeps it for a while.

use std::num::NonZeroUsize;

use moe_trace::ExpertSet;

use super::decayed_scores::{DecayedScores, Score};
use super::heap::PriorityHeap;
use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::{EvictionPolicy, PoolShape};
use crate::request::Request;

/// Replaces the expert requested least, lately, only by one requested clearly more, and none within `dwell` tokens after
/// it was loaded; all other misses are bypassed.
///
/// Requests count about `1 / e` for every 32 tokens that they are old, exactly as in [`Lfru`](crate::Lfru); the newcomer
/// must have more than 1.25 times the score of the expert that it displaces. For devices where a miss can be served
/// without a load, and loads are dear. State: a score an expert, a queue of the residents that dwell, a heap of the
/// others. An access and a victim cost O(log resident).
///
/// Source: hysteresis and minimum dwell time as in control loops that must not chatter.
#[derive(Clone, Debug)]
pub struct Hysteresis {
    scores: DecayedScores,
    settled: PriorityHeap<Score>,
    dwelling: Lists,
    /// Request at which a dwelling expert was loaded.
    loaded: Vec<u64>,
    clock: u64,
    dwell_requests: u64,
}

const MEMORY_TOKENS: NonZeroUsize = NonZeroUsize::new(32).expect("not zero");
const MARGIN: f64 = 1.25;

impl Hysteresis {
    /// Creates the policy for a cache of `capacity` slots over a pool, with a dwell time of `dwell` tokens.
    pub fn new(shape: PoolShape, capacity: usize, dwell: usize) -> Hysteresis {
        Hysteresis {
            scores: DecayedScores::new(shape.universe(), shape.layers, MEMORY_TOKENS),
            settled: PriorityHeap::new(shape.universe(), capacity),
            dwelling: Lists::new(shape.universe(), 1),
            loaded: vec![0; shape.universe()],
            clock: 0,
            dwell_requests: dwell.saturating_mul(shape.layers) as u64,
        }
    }
}

impl EvictionPolicy for Hysteresis {
    fn on_request(&mut self, request: &Request<'_>) {
        self.clock += 1;
        if self.scores.on_request() {
            self.settled.update_all(|expert| self.scores.score(expert));
        }
        for expert in request.wanted().iter() {
            self.scores.add(expert, 1.0);
            self.settled.update(expert, self.scores.score(expert));
        }
        while let Some(oldest) = self.dwelling.oldest(0)
            && self.clock - self.loaded[oldest] > self.dwell_requests
        {
            self.dwelling.remove(oldest);
            self.settled.put(oldest, self.scores.score(oldest));
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.loaded[expert.index()] = self.clock;
        self.dwelling.put(0, expert.index());
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.dwelling.remove(expert.index());
        self.settled.remove(expert.index());
    }

    fn victim(&mut self, incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        let lowest = self.settled.lowest_outside(pinned)?;
        self.scores.exceeds(incoming.index(), MARGIN, lowest).then(|| ExpertKey::from_index(lowest))
    }

    fn universe(&self) -> Option<usize> {
        Some(self.dwelling.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.dwelling.validate();
        let mut settled = resident.clone();
        for expert in self.dwelling.iter(0) {
            assert!(settled.remove(expert));
        }
        self.settled.validate(&settled);
    }
}
