//! Which copy into a slot waits for which compute.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use expert_cache::SlotId;

use super::driver::Driver;
use crate::error::Result;

/// The last compute that read each slot.
///
/// Compute runs in one queue, so that an event of it implies all that were recorded before. The other direction, compute
/// that waits for copies, needs no event: a load returns when its copies are done.
#[derive(Debug)]
pub(super) struct LastReads<D: Driver> {
    driver: Arc<D>,
    slots: Vec<Mutex<LastRead<D::Event>>>,
    /// Held while an event is recorded and noted, so that none replaces a later one.
    recording: Mutex<()>,
}

#[derive(Debug)]
enum LastRead<E> {
    /// Nothing reads the slot.
    None,
    /// The last compute that reads it is done when the event has come.
    Until(Arc<E>),
    /// Compute was queued, and no event could be recorded behind it.
    Unknown,
}

impl<D: Driver> LastReads<D> {
    pub(super) fn new(driver: Arc<D>, slots: usize) -> LastReads<D> {
        LastReads {
            driver,
            slots: (0..slots).map(|_| Mutex::new(LastRead::None)).collect(),
            recording: Mutex::default(),
        }
    }

    /// Queues compute that reads `slots` by calling `queue`, and remembers when it will be done, also if `queue` fails
    /// half way.
    pub(super) fn compute<T>(
        &self,
        slots: impl Iterator<Item = SlotId>,
        queue: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let result = queue();
        let recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let event = self.driver.record_compute().map(Arc::new);
        for slot in slots {
            let last = match &event {
                Ok(event) => LastRead::Until(Arc::clone(event)),
                Err(_) => LastRead::Unknown,
            };
            *self.last_read(slot) = last;
        }
        drop(recording);
        let result = result?;
        event?;
        Ok(result)
    }

    /// Lets a lane wait for the compute that reads a slot.
    pub(super) fn before_copy(&self, slot: SlotId, lane: &D::Lane) -> Result<()> {
        match &*self.last_read(slot) {
            LastRead::None => Ok(()),
            LastRead::Until(event) => self.driver.wait(lane, event),
            LastRead::Unknown => self.driver.drain_all(),
        }
    }

    /// Notes that copies that waited for the compute are done.
    pub(super) fn copied(&self, slot: SlotId) {
        *self.last_read(slot) = LastRead::None;
    }

    fn last_read(&self, slot: SlotId) -> MutexGuard<'_, LastRead<D::Event>> {
        // Every change is one assignment, which no panic leaves half done.
        self.slots[slot.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
