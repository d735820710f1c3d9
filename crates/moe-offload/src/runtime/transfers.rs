//! Who copies experts into slots.

use std::any::Any;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use expert_cache::Overlap;
use moe_trace::{LayerId, Phase};

use super::engine::Engine;
use super::slot_order::{Arrival, Job, Reason};
use crate::error::{OffloadError, Result};
use crate::report::Activity;

/// Who copies experts into slots.
///
/// Outputs, hits and loads are the same either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transfers {
    /// The calling thread: demanded experts before it computes them, prefetched ones at the end of the call. For experts
    /// so small that waking another thread takes longer than a copy.
    #[default]
    Inline,
    /// So many threads, beside the compute of the call; a calling thread that has nothing to compute copies too. If
    /// experts are prefetched, there is one thread more, which serves nothing but demands, so that no demand waits behind
    /// a prefetch.
    Threads(NonZeroUsize),
}

impl Transfers {
    /// So many threads; none is inline.
    pub fn threads(threads: usize) -> Transfers {
        NonZeroUsize::new(threads).map_or(Transfers::Inline, Transfers::Threads)
    }

    /// What a prediction of speed is to assume.
    pub fn overlap(self) -> Overlap {
        match self {
            Transfers::Inline => Overlap::None,
            Transfers::Threads(_) => Overlap::Copies,
        }
    }
}

/// The threads of a bank.
#[derive(Debug)]
pub(super) struct Workers {
    engine: Arc<Engine>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(super) fn start(engine: &Arc<Engine>, transfers: Transfers, prefetching: bool) -> Result<Workers> {
        let mut workers = Workers { engine: Arc::clone(engine), threads: Vec::new() };
        if let Transfers::Threads(threads) = transfers {
            for number in 0..threads.get() + usize::from(prefetching) {
                let prefetches = number < threads.get();
                let engine = Arc::clone(engine);
                let thread = std::thread::Builder::new().name(format!("expert loads {number}"));
                let thread = thread.spawn(move || engine.serve_loads(prefetches));
                workers
                    .threads
                    .push(thread.map_err(|source| OffloadError::Thread { what: "loading experts", source })?);
            }
        }
        Ok(workers)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.engine.stop();
        for thread in self.threads.drain(..) {
            // A worker catches what a load panics with.
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// Executes loads until the bank is dropped.
    fn serve_loads(&self, prefetches: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.stopping {
            state = match state.order.begin(prefetches) {
                Some(job) => {
                    drop(state);
                    self.load(&job);
                    self.state.lock().unwrap_or_else(PoisonError::into_inner)
                }
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Executes loads before the first call.
    pub(super) fn fill(&self, mut jobs: Vec<Job>) -> Result<()> {
        let layer = LayerId(0);
        let mut state = self.lock(layer)?;
        for job in &jobs {
            state.order.write(*job);
            state.order.read(job.place, job.key);
        }
        self.work.notify_all();
        while !jobs.is_empty() {
            let mut failure = None;
            jobs.retain(|job| match state.order.arrival(job.place, job.key, Phase::Prefill) {
                Arrival::Ready => {
                    state.order.read_done(job.place);
                    false
                }
                Arrival::Waiting | Arrival::Requeued => true,
                Arrival::Failed(error) => {
                    failure.get_or_insert(error);
                    true
                }
            });
            if let Some(error) = failure {
                return Err(error);
            }
            state = match state.order.begin(false) {
                Some(job) => {
                    drop(state);
                    self.load(&job);
                    self.lock(layer)?
                }
                None if jobs.is_empty() => state,
                None => self.wait(state, layer)?,
            };
        }
        Ok(())
    }

    /// Executes a load that has begun.
    pub(super) fn load(&self, job: &Job) -> bool {
        let (layer, expert) = self.expert(job.place.pool, job.key);
        let prefetch = job.reason == Reason::Prefetch;
        let span = tracing::trace_span!("load", layer = layer.0, expert = expert.0, prefetch).entered();
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let slots = &self.slots[job.place.pool];
            slots.load_from(job.place.slot, &*self.store, layer, expert)
        }));
        let ended = Instant::now();
        drop(span);
        let outcome = match outcome {
            Ok(outcome) => outcome.map_err(|source| OffloadError::Load { layer, expert, source: Box::new(source) }),
            Err(panic) => Err(OffloadError::LoadPanicked { layer, expert, message: message(&*panic) }),
        };
        if let Err(error) = &outcome
            && prefetch
        {
            tracing::warn!(
                layer = layer.0,
                expert = expert.0,
                error = error as &dyn std::error::Error,
                "prefetch failed"
            );
        }
        let activity = if prefetch { Activity::Prefetch } else { Activity::Load };
        self.record(activity, layer, Some(expert), (started, ended));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let success = outcome.is_ok();
        state.meters[layer.index()].loaded(job.reason, success, self.expert_bytes[layer.index()], ended - started);
        state.order.ended(job, outcome);
        // One that a call waits for is loaded again.
        if prefetch && !success && state.order.is_idle(job.place) {
            state.take_back_prefetch(job);
        }
        let more = state.order.has_work();
        drop(state);
        self.done.notify_all();
        if more {
            self.work.notify_all();
        }
        success
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
