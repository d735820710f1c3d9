//! The order in which loads write slots and calls read them.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use expert_cache::{ExpertKey, SlotId};
use moe_trace::Phase;

use crate::error::OffloadError;

/// A slot of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of the pool.
    pub(super) pool: usize,
    /// The slot.
    pub(super) slot: SlotId,
}

/// Why an expert is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Tokens of a phase wait for it.
    Demand(Phase),
    /// It may be wanted soon.
    Prefetch,
}

/// Number of a planned load, ascending in the order of planning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LoadNumber(u64);

impl LoadNumber {
    /// Number of the load that was planned right after this one.
    pub(super) fn next(self) -> LoadNumber {
        LoadNumber(self.0 + 1)
    }
}

/// A load to be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// Where it goes.
    pub(super) place: Place,
    /// The expert, as a key of the pool.
    pub(super) key: ExpertKey,
    /// Why it was planned.
    pub(super) reason: Reason,
}

/// The state of an expert that a cache takes for resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Residence {
    /// The expert is in its slot.
    Resident,
    /// The load of the expert has not ended.
    Loading,
    /// The load of the expert has failed.
    Lost,
}

/// How far an expert is that a call is about to read.
#[derive(Debug)]
pub(super) enum Arrival {
    /// It is in its slot, and nothing is to happen there before.
    Ready,
    /// It is on its way.
    Waiting,
    /// The prefetch that was to bring it has failed, and it has become a demand that somebody must begin.
    Requeued,
    /// Its load failed.
    Failed(OffloadError),
}

/// What happens to a slot next.
#[derive(Debug)]
enum Step {
    Read(ExpertKey),
    Write(Write),
}

#[derive(Debug)]
struct Write {
    number: LoadNumber,
    key: ExpertKey,
    reason: Reason,
    /// A call waits for it, whatever it was planned for.
    urgent: bool,
    running: bool,
}

#[derive(Debug, Default)]
struct Slot {
    /// Whose weights the slot holds; nobody's while it is written or after a load failed.
    holds: Option<ExpertKey>,
    /// Why the last load failed that a call waits for.
    failure: Option<OffloadError>,
    steps: VecDeque<Step>,
}

/// The contents of every slot, and the steps that are planned for it.
///
/// A cache takes its plans as executed; the slot order holds what has been executed. Its invariants:
///
/// 1. Steps of one slot run one after the other, in the order of planning. So a copy never overwrites an expert that is
///    still read, and never meets another copy. Steps of different slots run side by side.
/// 2. A load is in one of the two queues if and only if it is the first step of its slot and does not run.
/// 3. A thread begins the load that was planned first, demands before prefetches; a call begins the demands of its pool in
///    the order of planning. So a store below sees the loads in the order that a simulation counts.
/// 4. A slot holds an expert only if its last load has succeeded and no other has begun since. A read of any other expert
///    waits, loads anew, or fails.
#[derive(Debug)]
pub(super) struct SlotOrder {
    /// `[pools][slots]`
    slots: Vec<Vec<Slot>>,
    /// Slots whose next step is a load that a call waits for, by the number of the load.
    demands: BTreeMap<LoadNumber, Place>,
    /// Slots whose next step is another load, by the number of the load.
    prefetches: BTreeMap<LoadNumber, Place>,
    /// Number of the next load.
    next: LoadNumber,
}

impl SlotOrder {
    pub(super) fn new(capacities: &[usize]) -> SlotOrder {
        let slots = |&capacity: &usize| (0..capacity).map(|_| Slot::default()).collect();
        let slots: Vec<Vec<Slot>> = capacities.iter().map(slots).collect();
        SlotOrder { slots, demands: BTreeMap::new(), prefetches: BTreeMap::new(), next: LoadNumber(0) }
    }

    /// Whose weights a slot holds.
    pub(super) fn holds(&self, place: Place) -> Option<ExpertKey> {
        self.slots[place.pool][place.slot.index()].holds
    }

    /// Plans a load; tells whether another was called off for it, that had been planned in vain and not begun.
    pub(super) fn write(&mut self, job: Job) -> bool {
        let cancelled = self.call_off(job.place);
        let write = self.planned(job.key, job.reason);
        let steps = &mut self.slot(job.place).steps;
        steps.push_back(Step::Write(write));
        if steps.len() == 1 {
            self.enqueue(job.place);
        }
        cancelled
    }

    /// A load that is planned last of all.
    fn planned(&mut self, key: ExpertKey, reason: Reason) -> Write {
        let number = self.next;
        self.next = number.next();
        Write { number, key, reason, urgent: reason != Reason::Prefetch, running: false }
    }

    /// Drops a load that is the last step of a slot, and that nobody has begun.
    fn call_off(&mut self, place: Place) -> bool {
        let steps = &mut self.slot(place).steps;
        let Some(&Step::Write(Write { running: false, number, .. })) = steps.back() else { return false };
        steps.pop_back();
        self.dequeue(number);
        true
    }

    /// Takes a load out of the queues, if it is in one.
    fn dequeue(&mut self, number: LoadNumber) {
        self.demands.remove(&number);
        self.prefetches.remove(&number);
    }

    /// Plans that a call of `phase` reads an expert that the cache takes for resident.
    ///
    /// If its load is still to come, that becomes a demand; if its load failed, it is loaded anew.
    pub(super) fn read_resident(&mut self, place: Place, key: ExpertKey, phase: Phase) -> Residence {
        let slot = self.slot(place);
        let only = slot.steps.len() == 1;
        let residence = match slot.steps.back_mut() {
            // 1. No step is planned, and the slot holds the expert (invariant 4).
            None if slot.holds == Some(key) => Residence::Resident,
            // 2. The last step loads it: the call waits for that load. In a queue it moves to the demands (invariant 2).
            Some(Step::Write(write)) if write.key == key => {
                let promoted = !write.running && !write.urgent && only;
                write.urgent = true;
                let number = write.number;
                if promoted {
                    self.prefetches.remove(&number);
                    self.demands.insert(number, place);
                }
                Residence::Loading
            }
            // 3. The load has failed: it is planned again, behind the steps of the slot (invariant 1).
            _ => {
                self.write(Job { place, key, reason: Reason::Demand(phase) });
                Residence::Lost
            }
        };
        self.read(place, key);
        residence
    }

    /// Plans that a call reads an expert whose load was planned just before.
    pub(super) fn read(&mut self, place: Place, key: ExpertKey) {
        self.slot(place).steps.push_back(Step::Read(key));
    }

    /// Whether nothing is to happen any more before an expert is read, be it there or not.
    pub(super) fn has_ended(&self, place: Place, key: ExpertKey) -> bool {
        let first = self.slots[place.pool][place.slot.index()].steps.front();
        matches!(first, Some(Step::Read(next)) if *next == key)
    }

    /// How far an expert is that a call of `phase` reads.
    pub(super) fn arrival(&mut self, place: Place, key: ExpertKey, phase: Phase) -> Arrival {
        let slot = self.slot(place);
        let Some(Step::Read(next)) = slot.steps.front() else { return Arrival::Waiting };
        if *next != key {
            return Arrival::Waiting;
        }
        if slot.holds == Some(key) {
            return Arrival::Ready;
        }
        if let Some(error) = slot.failure.take() {
            return Arrival::Failed(error);
        }
        // A prefetch that failed while the call waited for it.
        let write = self.planned(key, Reason::Demand(phase));
        self.slot(place).steps.push_front(Step::Write(write));
        self.enqueue(place);
        Arrival::Requeued
    }

    /// A call has read the expert in a slot.
    pub(super) fn read_done(&mut self, place: Place) {
        let step = self.slot(place).steps.pop_front();
        debug_assert!(matches!(step, Some(Step::Read(_))));
        self.enqueue(place);
    }

    /// Begins the load planned first among those that a call waits for, or if there is none and `prefetches` are wanted, among
    /// the others.
    pub(super) fn begin(&mut self, prefetches: bool) -> Option<Job> {
        let place = match self.demands.pop_first() {
            Some((_, place)) => place,
            None if prefetches => self.prefetches.pop_first()?.1,
            None => return None,
        };
        Some(self.begin_at(place))
    }

    /// Begins the load planned first among those that a call of a pool waits for, and tells its number.
    pub(super) fn begin_demand_of(&mut self, pool: usize) -> Option<(LoadNumber, Job)> {
        let number = *self.demands.iter().find(|(_, place)| place.pool == pool)?.0;
        Some((number, self.begin_demand(number)?))
    }

    /// Begins a load of this number, if a call waits for it and nothing is to happen in its slot before.
    pub(super) fn begin_demand(&mut self, number: LoadNumber) -> Option<Job> {
        let place = self.demands.remove(&number)?;
        Some(self.begin_at(place))
    }

    /// Begins the load planned first among those that no call waits for.
    pub(super) fn begin_prefetch(&mut self) -> Option<Job> {
        let (_, place) = self.prefetches.pop_first()?;
        Some(self.begin_at(place))
    }

    /// Whether a load could begin.
    pub(super) fn has_work(&self) -> bool {
        !self.demands.is_empty() || !self.prefetches.is_empty()
    }

    fn begin_at(&mut self, place: Place) -> Job {
        let slot = self.slot(place);
        slot.holds = None;
        slot.failure = None;
        let Some(Step::Write(write)) = slot.steps.front_mut() else { unreachable!("queued places are to be written") };
        write.running = true;
        Job { place, key: write.key, reason: write.reason }
    }

    /// A load has ended.
    pub(super) fn ended(&mut self, job: &Job, outcome: Result<(), OffloadError>) {
        let slot = self.slot(job.place);
        slot.steps.pop_front();
        match outcome {
            Ok(()) => slot.holds = Some(job.key),
            Err(error) => {
                let awaited = matches!(slot.steps.front(), Some(Step::Read(_)));
                slot.failure = (awaited && job.reason != Reason::Prefetch).then_some(error);
            }
        }
        self.enqueue(job.place);
    }

    /// Takes back what a call has planned in a slot and not begun: its reads, and its loads.
    pub(super) fn abandon(&mut self, place: Place) {
        if let Some(&Step::Write(Write { number, .. })) = self.slot(place).steps.front() {
            self.dequeue(number);
        }
        let slot = self.slot(place);
        slot.failure = None;
        slot.steps.retain(|step| match step {
            Step::Read(_) => false,
            Step::Write(write) => write.running || write.reason == Reason::Prefetch,
        });
        for step in &mut slot.steps {
            if let Step::Write(write) = step {
                write.urgent &= write.running;
            }
        }
        self.enqueue(place);
    }

    /// Whether a load that a call waited for is running in a slot.
    pub(super) fn demand_runs(&self, place: Place) -> bool {
        let first = self.slots[place.pool][place.slot.index()].steps.front();
        matches!(first, Some(Step::Write(write)) if write.running && write.urgent)
    }

    /// Whether nothing is planned for a slot.
    pub(super) fn is_idle(&self, place: Place) -> bool {
        self.slots[place.pool][place.slot.index()].steps.is_empty()
    }

    /// Queues a slot whose next step is a load that has not begun.
    fn enqueue(&mut self, place: Place) {
        let Some(&Step::Write(Write { number, urgent, running: false, .. })) = self.slot(place).steps.front() else {
            return;
        };
        match urgent {
            true => self.demands.insert(number, place),
            false => self.prefetches.insert(number, place),
        };
    }

    fn slot(&mut self, place: Place) -> &mut Slot {
        &mut self.slots[place.pool][place.slot.index()]
    }

    /// Asserts that every load that could begin is queued, once and where it belongs, and nothing else is.
    #[cfg(test)]
    pub(super) fn validate(&self) {
        let mut queued = 0;
        for (pool, slots) in self.slots.iter().enumerate() {
            for (slot, held) in (0..).map(SlotId).zip(slots) {
                let place = Place { pool, slot };
                let count = |queue: &BTreeMap<_, Place>| queue.values().filter(|&&other| other == place).count();
                let expected = match held.steps.front() {
                    Some(Step::Write(Write { running: false, urgent, .. })) => {
                        (usize::from(*urgent), usize::from(!urgent))
                    }
                    _ => (0, 0),
                };
                assert_eq!((count(&self.demands), count(&self.prefetches)), expected, "{place:?}: {held:?}");
                queued += expected.0 + expected.1;
                let waiting = held.steps.iter().skip(1);
                assert!(waiting.clone().all(|step| !matches!(step, Step::Write(Write { running: true, .. }))));
            }
        }
        assert_eq!(queued, self.demands.len() + self.prefetches.len());
    }

    /// Whether anything is left to happen.
    #[cfg(test)]
    pub(super) fn is_busy(&self) -> bool {
        self.slots.iter().flatten().any(|slot| !slot.steps.is_empty())
    }

    /// Asserts that nothing is left to happen.
    #[cfg(test)]
    pub(super) fn assert_idle(&self) {
        assert!(self.slots.iter().flatten().all(|slot| slot.steps.is_empty() && slot.failure.is_none()));
    }
}
