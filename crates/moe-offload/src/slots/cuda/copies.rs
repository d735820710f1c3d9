//! Copies of experts into slots, beside compute.

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use expert_cache::SlotId;
use serde::Serialize;

use super::driver::{DeviceAddress, Driver};
use super::last_reads::LastReads;
use super::pinning::{LockedRanges, Pinning};
use crate::error::Result;

/// Staging buffers of a lane: the host fills one while the GPU copies from the other.
const BUFFERS: usize = 2;

/// Bytes that went to the device, by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CopiedBytes {
    /// From weights that are page-locked where they lie.
    pub locked: u64,
    /// Through page-locked staging buffers.
    pub staged: u64,
    /// From pageable memory, through the driver.
    pub pageable: u64,
}

/// The copies of all slots of a device: every load has a lane of its own while it runs, so that none waits behind
/// another.
#[derive(Debug)]
pub(super) struct Copies<D: Driver> {
    driver: Arc<D>,
    /// Bytes of a staging buffer.
    buffer_bytes: usize,
    /// Lanes that no load uses.
    idle: Mutex<Vec<Lane<D>>>,
    locked: RwLock<Vec<LockedRanges<D>>>,
    pinning: Mutex<Pinning>,
    copied: [AtomicU64; 3],
}

/// A queue of copies and its staging buffers.
#[derive(Debug)]
struct Lane<D: Driver> {
    queue: D::Lane,
    /// `None`: not asked for yet. Empty: refused.
    buffers: Option<VecDeque<D::Staging>>,
}

/// A load under way; however it ends, nothing of it is left in its lane.
struct Flight<'a, D: Driver> {
    copies: &'a Copies<D>,
    lane: Option<Lane<D>>,
    /// Buffers that copies read, oldest first.
    filled: VecDeque<Filled<D>>,
}

/// A staging buffer that a copy reads.
struct Filled<D: Driver> {
    buffer: D::Staging,
    /// When it is done, once that is known.
    done: Option<D::Event>,
}

/// Where copied bytes came from.
#[derive(Clone, Copy)]
enum Source {
    Locked,
    Staged,
    Pageable,
}

impl<D: Driver> Copies<D> {
    pub(super) fn new(driver: Arc<D>, buffer_bytes: usize) -> Copies<D> {
        Copies {
            driver,
            buffer_bytes,
            idle: Mutex::default(),
            locked: RwLock::default(),
            pinning: Mutex::default(),
            copied: Default::default(),
        }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn driver(&self) -> &Arc<D> {
        &self.driver
    }

    /// Copies an expert into a slot once the compute that reads the slot is done; returns when the slot holds it.
    ///
    /// The calling thread blocks, so that an error is the error of this load, and compute that is queued after the return
    /// needs no event to wait for. After an error the content of the slot is undefined, and nothing of the load is left.
    ///
    /// # Safety
    /// The device memory behind the addresses is of the bytes' lengths, belongs to the slot, and lives until the return.
    #[expect(unsafe_code, reason = "writes device memory")]
    pub(super) unsafe fn load(
        &self,
        reads: &LastReads<D>,
        slot: SlotId,
        projections: [(&[u8], DeviceAddress); 3],
    ) -> Result<()> {
        let idle = lock(&self.idle).pop();
        let lane = match idle {
            Some(lane) => lane,
            None => Lane { queue: self.driver.lane()?, buffers: None },
        };
        let mut flight = Flight { copies: self, lane: Some(lane), filled: VecDeque::new() };
        reads.before_copy(slot, &flight.lane().queue)?;
        for (bytes, to) in projections {
            // SAFETY: the flight is over, and its lane empty, before this function returns.
            unsafe { flight.copy(bytes, to)? };
        }
        flight.land()?;
        reads.copied(slot);
        Ok(())
    }

    /// Page-locks host memory where it lies, as far as the system and `limit_bytes` allow; what is refused is copied
    /// through staging buffers.
    ///
    /// # Safety
    /// The ranges stay mapped as long as `owner` lives.
    #[expect(unsafe_code, reason = "the memory belongs to somebody else")]
    pub(super) unsafe fn lock(
        &self,
        ranges: impl IntoIterator<Item = Range<usize>>,
        owner: Arc<dyn Any + Send + Sync>,
        page_bytes: usize,
        limit_bytes: u64,
    ) -> Pinning {
        // SAFETY: as the caller promises.
        let (locked, report) = unsafe { LockedRanges::lock(&*self.driver, ranges, owner, page_bytes, limit_bytes) };
        self.locked.write().unwrap_or_else(PoisonError::into_inner).push(locked);
        if let Some(reason) = &report.refusal {
            tracing::warn!(
                locked_bytes = report.locked_bytes,
                refused_bytes = report.refused_bytes,
                reason,
                "experts stay in pageable memory, their loads are slower"
            );
        }
        let mut pinning = lock(&self.pinning);
        pinning.locked_bytes += report.locked_bytes;
        pinning.refused_bytes += report.refused_bytes;
        if pinning.refusal.is_none() {
            pinning.refusal = report.refusal;
        }
        pinning.clone()
    }

    /// What is page-locked so far.
    pub(super) fn pinning(&self) -> Pinning {
        lock(&self.pinning).clone()
    }

    /// Bytes copied so far.
    pub(super) fn copied(&self) -> CopiedBytes {
        let [locked, staged, pageable] = self.copied.each_ref().map(|bytes| bytes.load(Ordering::Relaxed));
        CopiedBytes { locked, staged, pageable }
    }

    /// Allocates the buffers of a lane; none if one is refused.
    fn buffers(&self) -> VecDeque<D::Staging> {
        match (0..BUFFERS).map(|_| self.driver.staging(self.buffer_bytes)).collect::<Result<VecDeque<_>>>() {
            Ok(buffers) => {
                lock(&self.pinning).staging_bytes += (BUFFERS * self.buffer_bytes) as u64;
                buffers
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::warn!(bytes = BUFFERS * self.buffer_bytes, reason, "no staging buffers, loads are slower");
                lock(&self.pinning).refusal.get_or_insert(reason);
                VecDeque::new()
            }
        }
    }

    /// As [`LockedRanges::piece`], over all that is locked.
    fn piece(&self, address: usize, bytes: usize) -> (usize, bool) {
        let locked = self.locked.read().unwrap_or_else(PoisonError::into_inner);
        let pieces = locked.iter().map(|locked| locked.piece(address, bytes));
        pieces
            .reduce(|one, other| match (one, other) {
                ((_, true), _) => one,
                (_, (_, true)) => other,
                ((one, _), (other, _)) => (one.min(other), false),
            })
            .unwrap_or((bytes, false))
    }
}

impl<D: Driver> Flight<'_, D> {
    fn lane(&mut self) -> &mut Lane<D> {
        self.lane.as_mut().expect("a flight has its lane until it has landed")
    }

    /// Puts a copy of `bytes` to `to` into the lane, in as many pieces as it takes.
    ///
    /// # Safety
    /// `bytes` and the memory at `to` outlive the flight.
    #[expect(unsafe_code, reason = "writes device memory")]
    unsafe fn copy(&mut self, bytes: &[u8], to: DeviceAddress) -> Result<()> {
        let (mut rest, mut to) = (bytes, to);
        while !rest.is_empty() {
            let (mut length, locked) = self.copies.piece(rest.as_ptr().addr(), rest.len());
            let buffer = if locked { None } else { self.buffer()? };
            let source = if let Some(buffer) = buffer {
                length = length.min(self.copies.buffer_bytes);
                // SAFETY: the memory at `to` outlives the flight.
                unsafe { self.copy_staged(buffer, &rest[..length], to)? };
                Source::Staged
            } else {
                // SAFETY: both sides outlive the flight, which ends with an empty lane.
                unsafe { self.copies.driver.copy(&self.lane().queue, &rest[..length], to)? };
                if locked { Source::Locked } else { Source::Pageable }
            };
            self.copies.copied[source as usize].fetch_add(length as u64, Ordering::Relaxed);
            (rest, to) = (&rest[length..], to.plus(length));
        }
        Ok(())
    }

    /// Puts a copy through a buffer that no copy reads into the lane.
    ///
    /// # Safety
    /// The memory at `to` outlives the flight.
    #[expect(unsafe_code, reason = "writes device memory")]
    unsafe fn copy_staged(&mut self, mut buffer: D::Staging, bytes: &[u8], to: DeviceAddress) -> Result<()> {
        let driver = Arc::clone(&self.copies.driver);
        let filled = driver.fill(&mut buffer, bytes);
        self.filled.push_back(Filled { buffer, done: None });
        filled?;
        let Flight { lane: Some(lane), filled, .. } = self else { unreachable!("a flight has its lane") };
        let filled = filled.back_mut().expect("pushed above");
        // SAFETY: the buffer stays among those filled, where none is touched, until the event behind the copy has come
        // or the lane is empty.
        unsafe { driver.copy_staged(&lane.queue, &filled.buffer, bytes.len(), to)? };
        filled.done = Some(driver.record(&lane.queue)?);
        Ok(())
    }

    /// A staging buffer that no copy reads: a spare one, or the one that was filled first, as soon as its copy is done.
    /// `None` if the system gave no buffers.
    fn buffer(&mut self) -> Result<Option<D::Staging>> {
        let copies = self.copies;
        let spare = self.lane().buffers.get_or_insert_with(|| copies.buffers()).pop_front();
        if spare.is_some() {
            return Ok(spare);
        }
        match self.filled.front() {
            None => Ok(None),
            Some(Filled { done, .. }) => {
                let done = done.as_ref().expect("a copy that could not be queued ends the flight");
                copies.driver.synchronize(done)?;
                Ok(self.filled.pop_front().map(|filled| filled.buffer))
            }
        }
    }

    /// Waits until all copies are done, and gives the lane back.
    fn land(mut self) -> Result<()> {
        let driver = &self.copies.driver;
        let done = driver.record(&self.lane().queue)?;
        driver.synchronize(&done)?;
        self.give_back();
        Ok(())
    }

    /// Gives the lane, which is empty, and its buffers back.
    fn give_back(&mut self) {
        if let Some(mut lane) = self.lane.take() {
            if let Some(buffers) = &mut lane.buffers {
                buffers.extend(self.filled.drain(..).map(|filled| filled.buffer));
            }
            lock(&self.copies.idle).push(lane);
        }
    }
}

impl<D: Driver> Drop for Flight<'_, D> {
    /// Waits for what is queued, which reads memory of the caller. A lane that cannot be emptied belongs to a device that
    /// has failed and copies no more; it is not used again.
    fn drop(&mut self) {
        if self.lane.as_ref().is_some_and(|lane| self.copies.driver.drain(&lane.queue).is_ok()) {
            self.give_back();
        }
    }
}

/// A lock whose holder may have panicked: what it guards is whole after each statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
