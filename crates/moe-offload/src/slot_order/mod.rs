//! The order in which loads write slots and calls read them.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use expert_cache::{ExpertKey, SlotId};
use moe_trace::Phase;

use crate::OffloadError;

/// A slot of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of the pool.
    pub(crate) pool: usize,
    /// The slot.
    pub(crate) slot: SlotId,
}

/// Why an expert is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Tokens of a phase wait for it.
    Demand(Phase),
    /// It may be wanted soon.
    Prefetch,
}

/// A load to be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    /// Where it goes.
    pub(crate) place: Place,
    /// The expert, as a key of the pool.
    pub(crate) key: ExpertKey,
    /// Why it was planned.
    pub(crate) reason: Reason,
}

/// Where an expert is that a cache takes for resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residence {
    /// In its slot.
    There,
    /// On its way.
    Coming,
    /// Nowhere: a load failed.
    Lost,
}

/// How far an expert is that a call is about to read.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// It is in its slot, and nothing is to happen there before.
    Ready,
    /// It is on its way.
    Waiting,
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

/// What every slot holds, and what is still to happen to it, in the order of planning.
///
/// A cache takes its plans as executed; this is the truth. Steps of one slot follow each other, so that a copy never
/// overwrites what is still read, and never meets another copy; steps of different slots run side by side.
#[derive(Debug)]
pub(crate) struct SlotOrder {
    /// `[pools][slots]`
    slots: Vec<Vec<Slot>>,
    /// Slots whose next step is a load that a call waits for.
    demands: VecDeque<Place>,
    /// Slots whose next step is another load.
    prefetches: VecDeque<Place>,
}

impl SlotOrder {
    pub(crate) fn new(capacities: &[usize]) -> SlotOrder {
        let slots = |&capacity: &usize| (0..capacity).map(|_| Slot::default()).collect();
        let slots: Vec<Vec<Slot>> = capacities.iter().map(slots).collect();
        SlotOrder { slots, demands: VecDeque::new(), prefetches: VecDeque::new() }
    }

    /// Whose weights a slot holds.
    pub(crate) fn holds(&self, place: Place) -> Option<ExpertKey> {
        self.slots[place.pool][place.slot.index()].holds
    }

    /// Plans a load; tells whether another was called off for it, that had been planned in vain and not begun.
    pub(crate) fn write(&mut self, job: Job) -> bool {
        let called_off = self.call_off(job.place);
        let urgent = job.reason != Reason::Prefetch;
        let steps = &mut self.slot(job.place).steps;
        steps.push_back(Step::Write(Write { key: job.key, reason: job.reason, urgent, running: false }));
        if steps.len() == 1 {
            self.enqueue(job.place);
        }
        called_off
    }

    /// Drops a load that is the last step of a slot, and that nobody has begun.
    fn call_off(&mut self, place: Place) -> bool {
        let steps = &mut self.slot(place).steps;
        let Some(Step::Write(Write { running: false, .. })) = steps.back() else { return false };
        steps.pop_back();
        if steps.is_empty() {
            self.prefetches.retain(|&other| other != place);
            self.demands.retain(|&other| other != place);
        }
        true
    }

    /// Plans that a call of `phase` reads an expert that the cache takes for resident.
    ///
    /// If its load is still to come, that becomes a demand; if its load failed, it is loaded anew.
    pub(crate) fn read_resident(&mut self, place: Place, key: ExpertKey, phase: Phase) -> Residence {
        let slot = self.slot(place);
        let only = slot.steps.len() == 1;
        let residence = match slot.steps.back_mut() {
            None if slot.holds == Some(key) => Residence::There,
            Some(Step::Write(write)) if write.key == key => {
                let promoted = !write.running && !write.urgent && only;
                write.urgent = true;
                if promoted {
                    self.prefetches.retain(|&other| other != place);
                    self.demands.push_back(place);
                }
                Residence::Coming
            }
            _ => {
                self.write(Job { place, key, reason: Reason::Demand(phase) });
                Residence::Lost
            }
        };
        self.read(place, key);
        residence
    }

    /// Plans that a call reads an expert whose load was planned just before.
    pub(crate) fn read(&mut self, place: Place, key: ExpertKey) {
        self.slot(place).steps.push_back(Step::Read(key));
    }

    /// Whether nothing is to happen any more before an expert is read, be it there or not.
    pub(crate) fn has_ended(&self, place: Place, key: ExpertKey) -> bool {
        let first = self.slots[place.pool][place.slot.index()].steps.front();
        matches!(first, Some(Step::Read(next)) if *next == key)
    }

    /// How far an expert is that a call of `phase` reads.
    pub(crate) fn arrival(&mut self, place: Place, key: ExpertKey, phase: Phase) -> Arrival {
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
        let write = Write { key, reason: Reason::Demand(phase), urgent: true, running: false };
        slot.steps.push_front(Step::Write(write));
        self.enqueue(place);
        Arrival::Waiting
    }

    /// A call has read the expert in a slot.
    pub(crate) fn read_done(&mut self, place: Place) {
        let step = self.slot(place).steps.pop_front();
        debug_assert!(matches!(step, Some(Step::Read(_))));
        self.enqueue(place);
    }

    /// Begins the next load that a call waits for, or if there is none and `prefetches` are wanted, another one.
    pub(crate) fn begin(&mut self, prefetches: bool) -> Option<Job> {
        let place = match self.demands.pop_front() {
            Some(place) => place,
            None if prefetches => self.prefetches.pop_front()?,
            None => return None,
        };
        Some(self.begin_at(place))
    }

    /// Begins the next load that a call of a pool waits for.
    pub(crate) fn begin_demand_of(&mut self, pool: usize) -> Option<Job> {
        let at = self.demands.iter().position(|place| place.pool == pool)?;
        let place = self.demands.remove(at)?;
        Some(self.begin_at(place))
    }

    /// Begins the next load that no call waits for.
    pub(crate) fn begin_prefetch(&mut self) -> Option<Job> {
        let place = self.prefetches.pop_front()?;
        Some(self.begin_at(place))
    }

    /// Whether a load could begin.
    pub(crate) fn has_work(&self) -> bool {
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
    pub(crate) fn ended(&mut self, job: &Job, outcome: Result<(), OffloadError>) {
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
    pub(crate) fn abandon(&mut self, place: Place) {
        let queued = |other: &Place| *other != place;
        self.demands.retain(queued);
        self.prefetches.retain(queued);
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
    pub(crate) fn demand_runs(&self, place: Place) -> bool {
        let first = self.slots[place.pool][place.slot.index()].steps.front();
        matches!(first, Some(Step::Write(write)) if write.running && write.urgent)
    }

    /// Whether nothing is planned for a slot.
    pub(crate) fn is_idle(&self, place: Place) -> bool {
        self.slots[place.pool][place.slot.index()].steps.is_empty()
    }

    /// Queues a slot whose next step is a load that has not begun.
    fn enqueue(&mut self, place: Place) {
        let Some(Step::Write(write)) = self.slot(place).steps.front() else { return };
        if write.running {
            return;
        }
        match write.urgent {
            true => self.demands.push_back(place),
            false => self.prefetches.push_back(place),
        }
    }

    fn slot(&mut self, place: Place) -> &mut Slot {
        &mut self.slots[place.pool][place.slot.index()]
    }

    /// Asserts that every load that could begin is queued, once and where it belongs, and nothing else is.
    #[cfg(test)]
    pub(crate) fn validate(&self) {
        let mut queued = 0;
        for (pool, slots) in self.slots.iter().enumerate() {
            for (slot, held) in (0..).map(SlotId).zip(slots) {
                let place = Place { pool, slot };
                let count = |queue: &VecDeque<Place>| queue.iter().filter(|&&other| other == place).count();
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
    pub(crate) fn is_busy(&self) -> bool {
        self.slots.iter().flatten().any(|slot| !slot.steps.is_empty())
    }

    /// Asserts that nothing is left to happen.
    #[cfg(test)]
    pub(crate) fn assert_idle(&self) {
        assert!(self.slots.iter().flatten().all(|slot| slot.steps.is_empty() && slot.failure.is_none()));
    }
}
