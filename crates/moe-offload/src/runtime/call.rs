//! One call: a plan, executed as its experts arrive.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use expert_cache::{Eviction, ExpertKey, Request, SlotId};
use moe_trace::{ExpertId, LayerId, Phase};

use super::engine::{Engine, State};
use super::slot_order::{Arrival, Job, Place, Reason, Residence};
use super::transfers::Transfers;
use crate::dispatch::Dispatch;
use crate::error::{OffloadError, Result};
use crate::expert::{are_shared, gather};
use crate::report::Activity;
use crate::slots::SlotGroup;

/// An expert that a call reads from its slot.
#[derive(Clone, Copy, Debug)]
struct Read {
    key: ExpertKey,
    slot: SlotId,
    /// Index of its tokens' group.
    group: usize,
}

/// What a call notes; its lists are kept for the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Experts not yet read.
    pending: Vec<Read>,
    /// Those that are read now.
    ready: Vec<Read>,
    /// Experts to be computed on the host.
    bypasses: Vec<ExpertKey>,
    /// Hits that a prefetch has brought too late.
    late: Vec<ExpertKey>,
    /// Experts that were in their slots when they were read.
    arrived: Vec<ExpertKey>,
    /// Experts that are computed together, at most.
    together: usize,
}

impl Scratch {
    fn clear(&mut self) {
        self.pending.clear();
        self.ready.clear();
        self.bypasses.clear();
        self.late.clear();
        self.arrived.clear();
    }
}

/// A call of one layer, with the turn of its pool.
pub(super) struct Call<'a> {
    pub(super) engine: &'a Engine,
    pub(super) transfers: Transfers,
    /// How long to wait for a load, where other threads load.
    pub(super) load_timeout: Option<Duration>,
    /// Whether the host may compute experts.
    pub(super) host: bool,
    pub(super) pool: usize,
    /// Key of the layer's first expert.
    pub(super) first_key: u32,
    pub(super) layer: LayerId,
    pub(super) phase: Phase,
    pub(super) dispatch: &'a Dispatch,
    /// Tokens, `[tokens, hidden]`.
    pub(super) hidden: &'a Tensor,
}

/// What came of a call so far.
struct Progress<'s> {
    scratch: &'s mut Scratch,
    /// Output of each group.
    outputs: Vec<Option<Tensor>>,
    /// Tokens in host memory, where experts are bypassed.
    host_hidden: Option<Tensor>,
    compute: Duration,
    stall: Duration,
    bypass: Duration,
}

impl Call<'_> {
    /// Plans and executes a request; returns the output of each group of tokens.
    ///
    /// A call has the turn of its pool, so that the plan of the pool's cache stays that of this request until the end.
    pub(super) fn serve(&self, request: &Request<'_>, scratch: &mut Scratch) -> Result<Vec<Tensor>> {
        // 1. The cache decides, and the slot order notes a step for every load and read of the plan.
        let state = self.plan(request, scratch)?;
        let outputs = self.dispatch.groups().iter().map(|_| None).collect();
        let nothing = Duration::ZERO;
        let mut progress =
            Progress { scratch, outputs, host_hidden: None, compute: nothing, stall: nothing, bypass: nothing };
        // 2. Steps are executed. A panic must not leave steps behind that other calls wait for.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.execute(state, request, &mut progress)));
        // 3. What was achieved is counted, or what was not achieved is taken back from the cache.
        let mut state = self.engine.lock(self.layer)?;
        let meter = &mut state.meters[self.layer.index()];
        meter.spent(self.phase, progress.compute, progress.stall, progress.bypass);
        match &outcome {
            Ok(Ok(())) => self.succeed(&mut state, progress.scratch),
            failure => {
                let given_up = matches!(failure, Ok(Err(OffloadError::SlowLoad { .. })));
                state = self.fail(state, progress.scratch, given_up)?;
            }
        }
        // 4. Prefetches of other calls may evict the experts of this request from here on.
        state.caches[self.pool].release();
        self.finish_prefetches(state)?;
        outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok(progress.outputs.into_iter().flatten().collect())
    }

    /// Decides a plan and notes its steps.
    fn plan(&self, request: &Request<'_>, scratch: &mut Scratch) -> Result<MutexGuard<'_, State>> {
        let mut state = self.engine.lock(self.layer)?;
        let State { caches, order, meters, .. } = &mut *state;
        let cache = &mut caches[self.pool];
        let plan = cache.request(*request)?;
        if let Some(&key) = plan.bypasses().first().filter(|_| !self.host) {
            cache.rollback(0)?;
            return Err(OffloadError::Declined { layer: self.layer, expert: self.expert(key) });
        }
        scratch.clear();
        let Scratch { pending, bypasses, late, together, .. } = scratch;
        // The next wave waits for slots of this one: they are left one by one, so that threads load while this one computes.
        let one_by_one = self.transfers != Transfers::Inline && plan.waves().nth(1).is_some();
        *together = if one_by_one { 1 } else { usize::MAX };
        bypasses.extend(plan.bypasses().iter().rev());
        let read = |key, slot| Read { key, slot, group: self.group(key) };
        for hit in plan.hits() {
            let residence = order.read_resident(self.place(hit.slot), hit.key, self.phase);
            if residence != Residence::Resident && hit.prefetched {
                late.push(hit.key);
            }
            if residence == Residence::Lost {
                meters[self.layer.index()].reload(self.phase);
            }
            pending.push(read(hit.key, hit.slot));
        }
        for load in plan.loads() {
            let place = self.place(load.slot);
            if order.write(Job { place, key: load.key, reason: Reason::Demand(self.phase) }) {
                meters[self.layer.index()].cancelled();
            }
            order.read(place, load.key);
            pending.push(read(load.key, load.slot));
        }
        Ok(state)
    }

    /// Reads experts as they arrive, and computes bypassed ones while none is there.
    fn execute<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        request: &Request<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<()> {
        if state.planner.is_some() {
            if state.order.has_work() {
                // Demands need not wait until predictions are made.
                drop(state);
                self.engine.work.notify_all();
                state = self.engine.lock(self.layer)?;
            }
            self.prefetch(&mut state, request)?;
        }
        if state.order.has_work() {
            self.engine.work.notify_all();
        }
        if !progress.scratch.bypasses.is_empty() {
            // Before the device has work that a copy would wait for.
            drop(state);
            progress.host_hidden = Some(self.hidden.to_device(&Device::Cpu)?);
            state = self.engine.lock(self.layer)?;
        }
        loop {
            if self.collect_ready(&mut state, progress.scratch)? {
                // The threads have gone to sleep since: what was requeued has only just become work.
                self.engine.work.notify_all();
            }
            if !progress.scratch.ready.is_empty() {
                drop(state);
                self.compute(progress)?;
                state = self.engine.lock(self.layer)?;
                for read in progress.scratch.ready.drain(..) {
                    state.order.read_done(self.place(read.slot));
                }
                if state.order.has_work() {
                    self.engine.work.notify_all();
                }
            } else if let Some(key) = progress.scratch.bypasses.pop() {
                drop(state);
                self.compute_on_host(key, progress)?;
                state = self.engine.lock(self.layer)?;
            } else if progress.scratch.pending.is_empty() {
                return Ok(());
            } else {
                state = self.await_load(state, progress)?;
            }
        }
    }

    /// Executes loads, or waits until another thread has executed one.
    fn await_load<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        progress: &mut Progress<'_>,
    ) -> Result<MutexGuard<'a, State>> {
        let started = Instant::now();
        if self.load_timeout.is_none()
            && let Some((mut number, mut job)) = state.order.begin_demand_of(self.pool)
        {
            loop {
                drop(state);
                let loaded = self.engine.load(&job);
                state = self.engine.lock(self.layer)?;
                // An expert is computed while the processor still has its weights in a cache, and with threads while they load
                // others; but those that threads share are computed together. Then a load that was planned next and waits for
                // its slot is not overtaken.
                number = number.next();
                match (loaded && self.loads_all()).then(|| state.order.begin_demand(number)).flatten() {
                    Some(next) => job = next,
                    None => break,
                }
            }
            progress.stall += started.elapsed();
            return Ok(state);
        }
        let (state, in_time) = match self.load_timeout {
            None => (self.engine.wait(state, self.layer)?, true),
            Some(load_timeout) => {
                // Loads of other calls end, too.
                let arriving = |state: &mut State| !self.any_ready(state, progress.scratch);
                let waited = self.engine.done.wait_timeout_while(state, load_timeout, arriving);
                let (state, timeout) = waited.map_err(|_| OffloadError::Poisoned { layer: self.layer })?;
                (state, !timeout.timed_out())
            }
        };
        let ended = Instant::now();
        let seconds = (ended - started).as_secs_f64();
        progress.stall += ended - started;
        tracing::trace!(layer = self.layer.0, seconds, "stall");
        self.engine.record(Activity::Stall, self.layer, None, (started, ended));
        match progress.scratch.pending.first().filter(|_| !in_time) {
            None => Ok(state),
            Some(read) => Err(OffloadError::SlowLoad { layer: self.layer, expert: self.expert(read.key), seconds }),
        }
    }

    /// Whether all demands are loaded before any expert is computed: where the caller loads, and threads share the experts.
    fn loads_all(&self) -> bool {
        let (shape, rows) = (self.engine.store.shape(), self.dispatch.row_count());
        let types = self.engine.store.weight_types()[self.layer.index()].each();
        let dense = self.hidden.device().is_cpu() && types.iter().all(|weights| weights.dense().is_some());
        let products = dense.then(|| 3 * shape.hidden * shape.intermediate * rows);
        self.transfers == Transfers::Inline && are_shared(self.dispatch.groups().len(), rows, products)
    }

    /// Plans prefetches right after a request, as the simulator does, and queues the leftover predictions to be read ahead.
    fn prefetch(&self, state: &mut State, request: &Request<'_>) -> Result<()> {
        let State { caches, planner, read_ahead, order, meters, .. } = state;
        let Some(planner) = planner else { return Ok(()) };
        let leftovers = planner.plan(self.pool, request, caches, |prefetch| {
            let place = Place { pool: prefetch.pool, slot: prefetch.load.slot };
            if order.write(Job { place, key: prefetch.load.key, reason: Reason::Prefetch }) {
                meters[self.layer.index()].cancelled();
            }
        })?;
        let Some(queue) = read_ahead else { return Ok(()) };
        leftovers.iter().try_for_each(|prediction| queue.push(prediction.layer, prediction.expert))
    }

    /// Whether an expert has arrived, or a load has failed.
    fn any_ready(&self, state: &State, scratch: &Scratch) -> bool {
        scratch.pending.iter().any(|read| state.order.has_ended(self.place(read.slot), read.key))
    }

    /// Moves experts that are in their slots from the pending to the ready; tells whether a load was requeued that its call
    /// waits for.
    fn collect_ready(&self, state: &mut State, scratch: &mut Scratch) -> Result<bool> {
        let Scratch { pending, ready, arrived, together, .. } = scratch;
        let (mut failure, mut requeued) = (None, false);
        pending.retain(|read| {
            if ready.len() == *together {
                return true;
            }
            match state.order.arrival(self.place(read.slot), read.key, self.phase) {
                Arrival::Ready => {
                    ready.push(*read);
                    arrived.push(read.key);
                    false
                }
                Arrival::Waiting => true,
                Arrival::Requeued => {
                    requeued = true;
                    true
                }
                Arrival::Failed(error) => {
                    failure.get_or_insert(error);
                    true
                }
            }
        });
        failure.map_or(Ok(requeued), Err)
    }

    /// Computes the experts that are ready.
    fn compute(&self, progress: &mut Progress<'_>) -> Result<()> {
        let reads = &progress.scratch.ready;
        let _span = tracing::trace_span!("compute", layer = self.layer.0, experts = reads.len()).entered();
        let started = Instant::now();
        let rows = |read: &Read| self.dispatch.rows(read.group);
        let groups: Vec<SlotGroup<'_>> =
            reads.iter().map(|read| SlotGroup { slot: read.slot, rows: rows(read) }).collect();
        let outputs = self.engine.slots[self.pool].forward(self.hidden, &groups)?;
        for (read, output) in reads.iter().zip(outputs) {
            progress.outputs[read.group] = Some(output);
        }
        let ended = Instant::now();
        progress.compute += ended - started;
        let only = (reads.len() == 1).then(|| self.expert(reads[0].key));
        self.engine.record(Activity::Compute, self.layer, only, (started, ended));
        Ok(())
    }

    /// Computes a bypassed expert in host memory.
    fn compute_on_host(&self, key: ExpertKey, progress: &mut Progress<'_>) -> Result<()> {
        let expert = self.expert(key);
        let _span = tracing::trace_span!("host compute", layer = self.layer.0, expert = expert.0).entered();
        let started = Instant::now();
        let hidden = progress.host_hidden.as_ref().unwrap_or(self.hidden);
        let group = self.group(key);
        let tokens = gather(hidden, self.dispatch.rows(group))?;
        let output = self.engine.store.fetch_checked(self.layer, expert)?.forward(&tokens)?;
        progress.outputs[group] = Some(output.to_device(self.hidden.device())?);
        let ended = Instant::now();
        progress.bypass += ended - started;
        self.engine.record(Activity::HostCompute, self.layer, Some(expert), (started, ended));
        Ok(())
    }

    fn succeed(&self, state: &mut State, scratch: &Scratch) {
        let State { caches, planner, meters, .. } = state;
        let cache = &caches[self.pool];
        meters[self.layer.index()].served(self.phase, cache.plan());
        if let Some(planner) = planner {
            planner.count_served(self.pool, cache, |hit| scratch.late.contains(&hit.key));
        }
    }

    /// Takes back what the plan did not achieve, after the loads that are still running have ended, unless they are given
    /// up.
    fn fail<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        scratch: &Scratch,
        given_up: bool,
    ) -> Result<MutexGuard<'a, State>> {
        let plan = state.caches[self.pool].plan();
        let slots = plan.hits().iter().map(|hit| hit.slot).chain(plan.loads().iter().map(|load| load.slot));
        let places: Vec<Place> = slots.map(|slot| self.place(slot)).collect();
        places.iter().for_each(|&place| state.order.abandon(place));
        while !given_up && places.iter().any(|&place| state.order.demand_runs(place)) {
            state = self.engine.wait(state, self.layer)?;
        }
        let State { caches, order, planner, meters, .. } = &mut *state;
        let cache = &mut caches[self.pool];
        let plan = cache.plan();
        // What is taken back although it was loaded is found out when its slot's expert is wanted next.
        let done = |key, slot| scratch.arrived.contains(&key) || order.holds(self.place(slot)) == Some(key);
        let loaded = plan.loads().iter().take_while(|load| done(load.key, load.slot)).count();
        let unused: Vec<Eviction> = plan.evictions().iter().filter(|eviction| eviction.unused).copied().collect();
        tracing::debug!(layer = self.layer.0, loads = plan.loads().len(), loaded, "rollback");
        cache.rollback(loaded)?;
        if let Some(planner) = planner {
            let gone = unused.iter().filter(|eviction| !cache.resident().contains(eviction.key.index()));
            planner.count_evictions(self.pool, cache, gone);
        }
        meters[self.layer.index()].failed(self.phase);
        Ok(state)
    }

    /// Executes prefetches here if no other thread does.
    fn finish_prefetches<'a>(&'a self, mut state: MutexGuard<'a, State>) -> Result<()> {
        if self.transfers == Transfers::Inline {
            while let Some(job) = state.order.begin_prefetch() {
                drop(state);
                self.engine.load(&job);
                state = self.engine.lock(self.layer)?;
            }
        } else if state.order.has_work() {
            self.engine.work.notify_all();
        }
        Ok(())
    }

    fn place(&self, slot: SlotId) -> Place {
        Place { pool: self.pool, slot }
    }

    fn expert(&self, key: ExpertKey) -> ExpertId {
        ExpertId(u16::try_from(key.0 - self.first_key).expect("routes are u16"))
    }

    fn group(&self, key: ExpertKey) -> usize {
        self.dispatch.group_of(usize::from(self.expert(key).0))
    }
}
