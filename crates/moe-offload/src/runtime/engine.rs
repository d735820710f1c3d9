//! What the callers and the threads of a bank share.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use expert_cache::{EvictionPolicy, ExpertCache, ExpertKey, Pool};
use moe_trace::{ExpertId, LayerId};

use crate::meter::LayerMeter;
use crate::prefetches::Prefetches;
use crate::slot_order::{Job, SlotOrder};
use crate::timeline::{Activity, RunTimeline};
use crate::{ExpertSlots, ExpertStore, LayerCounters, OffloadError, Result};

/// Weights, slots, and the books about them.
///
/// One lock guards all books: it is held while a request is planned and while steps are noted as done, never during a
/// copy or a computation. A call holds the turn of its pool meanwhile, so that nobody else plans a request there.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) store: Arc<dyn ExpertStore>,
    /// Bytes of one expert.
    pub(crate) expert_bytes: Vec<u64>,
    pub(crate) pools: Vec<Pool>,
    /// Those of each pool.
    pub(crate) slots: Vec<Box<dyn ExpertSlots>>,
    pub(crate) state: Mutex<State>,
    /// A load may begin.
    pub(crate) work: Condvar,
    /// A load has ended.
    pub(crate) done: Condvar,
    pub(crate) timeline: Option<RunTimeline>,
}

/// The cache of a pool.
pub(crate) type Cache = ExpertCache<Box<dyn EvictionPolicy>>;

/// The books.
#[derive(Debug)]
pub(crate) struct State {
    /// Of each pool.
    pub(crate) caches: Vec<Cache>,
    pub(crate) order: SlotOrder,
    pub(crate) prefetches: Option<Prefetches>,
    /// Of each layer.
    pub(crate) meters: Vec<LayerMeter>,
    /// The bank is being dropped.
    pub(crate) stopping: bool,
}

impl State {
    /// Counters of a layer.
    pub(crate) fn counters(&self, layer: usize) -> LayerCounters {
        let mut counters = *self.meters[layer].counters();
        if let Some(prefetches) = &self.prefetches {
            counters.prefetch.counts = prefetches.counts()[layer];
        }
        counters
    }

    /// Gives the slot of a prefetch that failed back to its cache.
    pub(crate) fn take_back_prefetch(&mut self, job: &Job, pool: &Pool) {
        let gone = self.caches[job.place.pool].forget(job.key, job.place.slot);
        if let (Some(gone), Some(prefetches)) = (gone, &mut self.prefetches) {
            prefetches.evicted(pool, &gone);
        }
    }
}

impl Engine {
    /// The books, for a call of a layer.
    pub(crate) fn lock(&self, layer: LayerId) -> Result<MutexGuard<'_, State>> {
        self.state.lock().map_err(|_| OffloadError::Poisoned { layer })
    }

    /// Waits until a load has ended.
    pub(crate) fn wait<'a>(&'a self, state: MutexGuard<'a, State>, layer: LayerId) -> Result<MutexGuard<'a, State>> {
        self.done.wait(state).map_err(|_| OffloadError::Poisoned { layer })
    }

    /// The expert of a key of a pool.
    pub(crate) fn expert(&self, pool: usize, key: ExpertKey) -> (LayerId, ExpertId) {
        self.pools[pool].expert(key).expect("a key of the pool")
    }

    /// Tells the threads to end.
    pub(crate) fn stop(&self) {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).stopping = true;
        self.work.notify_all();
    }

    /// Notes an activity of this thread, if a timeline is recorded.
    pub(crate) fn record(
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
