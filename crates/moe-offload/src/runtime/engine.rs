//! What the callers and the threads of a bank share.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use expert_cache::{ExpertCache, ExpertKey, Pool, PrefetchPlanner};
use moe_trace::{ExpertId, LayerId};

use super::meter::LayerMeter;
use super::read_ahead_queue::ReadAheadQueue;
use super::slot_order::{Job, SlotOrder};
use crate::error::{OffloadError, Result};
use crate::report::{Activity, LayerCounters, RunTimeline};
use crate::slots::ExpertSlots;
use crate::store::ExpertStore;

/// Weights, slots, and the books about them.
///
/// One lock guards all books: it is held while a request is planned and while steps are noted as done, never during a
/// copy or a computation. A call holds the turn of its pool meanwhile, so that nobody else plans a request there.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) store: Arc<dyn ExpertStore>,
    /// Bytes of one expert.
    pub(super) expert_bytes: Vec<u64>,
    pub(super) pools: Vec<Pool>,
    /// Those of each pool.
    pub(super) slots: Vec<Box<dyn ExpertSlots>>,
    pub(super) state: Mutex<State>,
    /// A load may begin.
    pub(super) work: Condvar,
    /// A load has ended.
    pub(super) done: Condvar,
    pub(super) timeline: Option<RunTimeline>,
}

/// The books.
#[derive(Debug)]
pub(super) struct State {
    /// Of each pool.
    pub(super) caches: Vec<ExpertCache>,
    pub(super) order: SlotOrder,
    pub(super) planner: Option<PrefetchPlanner>,
    pub(super) read_ahead: Option<ReadAheadQueue>,
    /// Of each layer.
    pub(super) meters: Vec<LayerMeter>,
    /// The bank is being dropped.
    pub(super) stopping: bool,
}

impl State {
    /// Counters of a layer.
    pub(super) fn counters(&self, layer: usize) -> LayerCounters {
        let mut counters = *self.meters[layer].counters();
        if let Some(planner) = &self.planner {
            counters.prefetch.counts = planner.counts()[layer];
        }
        counters
    }

    /// Gives the slot of a prefetch that failed back to its cache.
    pub(super) fn take_back_prefetch(&mut self, job: &Job) {
        let Job { place, key, .. } = *job;
        let cache = &mut self.caches[place.pool];
        let evicted = cache.forget(key, place.slot);
        if let Some(planner) = &mut self.planner {
            planner.count_evictions(place.pool, cache, &evicted);
        }
    }
}

impl Engine {
    /// The books, for a call of a layer.
    pub(super) fn lock(&self, layer: LayerId) -> Result<MutexGuard<'_, State>> {
        self.state.lock().map_err(|_| OffloadError::Poisoned { layer })
    }

    /// Waits until a load has ended.
    pub(super) fn wait<'a>(&'a self, state: MutexGuard<'a, State>, layer: LayerId) -> Result<MutexGuard<'a, State>> {
        self.done.wait(state).map_err(|_| OffloadError::Poisoned { layer })
    }

    /// The expert of a key of a pool.
    pub(super) fn expert(&self, pool: usize, key: ExpertKey) -> (LayerId, ExpertId) {
        self.pools[pool].expert(key).expect("a key of the pool")
    }

    /// Tells the threads to end.
    pub(super) fn stop(&self) {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).stopping = true;
        self.work.notify_all();
    }

    /// Notes an activity of this thread, if a timeline is recorded.
    pub(super) fn record(
        &self,
        activity: Activity,
        layer: LayerId,
        expert: Option<ExpertId>,
        (start, end): (Instant, Instant),
    ) {
        if let Some(timeline) = &self.timeline {
            timeline.record(activity, layer, expert, start, end);
        }
    }
}
