//! A GPU of threads: every queue is one, takes its time, and looks where others are.
//!
//! Device memory is a row of slots. Whoever reads or writes one enters it, dawdles, and leaves; a writer that meets
//! anybody, or a reader that meets a writer, is a race, and is counted. So is filling a staging buffer that a copy reads.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::driver::{DeviceAddress, Driver};
use crate::error::{OffloadError, Result};

/// What a stub leaves out, to show that the tests see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Omit {
    /// Lanes wait for no event.
    LaneWaits,
    /// The host waits for no event.
    HostWaits,
}

#[derive(Debug)]
pub(super) struct Stub {
    memory: Arc<Memory>,
    compute: Mutex<Queue>,
    omit: Option<Omit>,
    /// Seed of the next queue.
    queues: AtomicUsize,
    /// Bytes that may be page-locked, and are.
    quota: usize,
    locked: Arc<AtomicUsize>,
    /// The copy of this number, counted from 0, fails when it is queued.
    failing_copy: Option<usize>,
    copies: AtomicUsize,
    /// Recording an event behind compute fails.
    pub(super) no_compute_events: AtomicBool,
}

/// Device memory of slots of equal size.
#[derive(Debug)]
struct Memory {
    slot_bytes: usize,
    slots: Vec<Slot>,
    races: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Slot {
    bytes: Mutex<Vec<u8>>,
    users: Mutex<Users>,
}

#[derive(Debug, Default)]
struct Users {
    readers: usize,
    writers: usize,
}

type Job = Box<dyn FnOnce(&mut ChaCha8Rng) + Send>;

/// A thread that does one job after the other.
#[derive(Debug)]
pub(super) struct Queue {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// A door that opens once.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<(Mutex<bool>, Condvar)>);

#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Arc<Mutex<Vec<u8>>>,
    /// Copies that read it.
    readers: Arc<AtomicUsize>,
    races: Arc<AtomicUsize>,
    locked: Locked,
}

/// Bytes of the quota, given back when dropped.
#[derive(Debug)]
pub(super) struct Locked {
    bytes: usize,
    locked: Arc<AtomicUsize>,
}

impl Stub {
    pub(super) fn new(slots: usize, slot_bytes: usize) -> Stub {
        let races = Arc::new(AtomicUsize::new(0));
        let slot = || Slot { bytes: Mutex::new(vec![0; slot_bytes]), users: Mutex::default() };
        let slots = (0..slots).map(|_| slot()).collect();
        Stub {
            memory: Arc::new(Memory { slot_bytes, slots, races }),
            compute: Mutex::new(Queue::new(0)),
            omit: None,
            queues: AtomicUsize::new(1),
            quota: usize::MAX,
            locked: Arc::default(),
            failing_copy: None,
            copies: AtomicUsize::new(0),
            no_compute_events: AtomicBool::new(false),
        }
    }

    pub(super) fn omitting(self, omit: Omit) -> Stub {
        Stub { omit: Some(omit), ..self }
    }

    pub(super) fn with_quota(self, quota: usize) -> Stub {
        Stub { quota, ..self }
    }

    pub(super) fn with_failing_copy(self, number: usize) -> Stub {
        Stub { failing_copy: Some(number), ..self }
    }

    /// Races so far.
    pub(super) fn races(&self) -> usize {
        self.memory.races.load(Ordering::SeqCst)
    }

    /// Bytes that are page-locked now.
    pub(super) fn locked_bytes(&self) -> usize {
        self.locked.load(Ordering::SeqCst)
    }

    /// Address of a slot.
    pub(super) fn address(&self, slot: usize) -> DeviceAddress {
        DeviceAddress((slot * self.memory.slot_bytes) as u64)
    }

    /// What a slot holds.
    pub(super) fn bytes(&self, slot: usize) -> Vec<u8> {
        self.memory.slots[slot].bytes.lock().unwrap().clone()
    }

    /// Queues compute that reads slots and hands what it saw of each to `check`.
    pub(super) fn compute(&self, slots: &[usize], mut check: impl FnMut(usize, &[u8]) + Send + 'static) {
        let (memory, slots) = (Arc::clone(&self.memory), slots.to_vec());
        self.compute.lock().unwrap().push(move |rng| {
            slots.iter().for_each(|&slot| memory.enter_reader(slot));
            dawdle(rng);
            for &slot in &slots {
                let bytes = memory.slots[slot].bytes.lock().unwrap().clone();
                check(slot, &bytes);
            }
            dawdle(rng);
            slots.iter().for_each(|&slot| memory.slots[slot].users.lock().unwrap().readers -= 1);
        });
    }

    /// Queues compute that reads a slot, opens `started`, and goes on when `release` is open.
    pub(super) fn compute_until(&self, slot: usize, started: Gate, release: Gate) {
        self.compute(&[slot], move |_, _| {
            started.open();
            release.pass();
        });
    }

    fn queue_copy(
        &self,
        lane: &Queue,
        to: DeviceAddress,
        length: usize,
        read: impl FnOnce(&mut [u8], Range<usize>, &mut ChaCha8Rng) + Send + 'static,
    ) -> Result<()> {
        if Some(self.copies.fetch_add(1, Ordering::SeqCst)) == self.failing_copy {
            return Err(refusal("copy", 700));
        }
        let address = usize::try_from(to.0).unwrap();
        let memory = Arc::clone(&self.memory);
        lane.push(move |rng| {
            let (slot, start) = (address / memory.slot_bytes, address % memory.slot_bytes);
            memory.enter_writer(slot);
            dawdle(rng);
            read(&mut memory.slots[slot].bytes.lock().unwrap(), start..start + length, rng);
            dawdle(rng);
            memory.slots[slot].users.lock().unwrap().writers -= 1;
        });
        Ok(())
    }

    fn take_quota(&self, bytes: usize, operation: &'static str) -> Result<Locked> {
        let taken = self.locked.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |locked| {
            locked.checked_add(bytes).filter(|&locked| locked <= self.quota)
        });
        taken.map_err(|_| refusal(operation, 2))?;
        Ok(Locked { bytes, locked: Arc::clone(&self.locked) })
    }
}

impl Driver for Stub {
    type Lane = Queue;
    type Event = Gate;
    type Staging = Buffer;
    type Locked = Locked;

    fn lane(&self) -> Result<Queue> {
        Ok(Queue::new(self.queues.fetch_add(1, Ordering::SeqCst) as u64))
    }

    fn staging(&self, bytes: usize) -> Result<Buffer> {
        let locked = self.take_quota(bytes, "allocating page-locked memory")?;
        let (bytes, readers) = (Arc::new(Mutex::new(vec![0; bytes])), Arc::default());
        Ok(Buffer { bytes, readers, races: Arc::clone(&self.memory.races), locked })
    }

    #[expect(unsafe_code, reason = "as declared")]
    unsafe fn lock(&self, _: usize, bytes: usize) -> Result<Locked> {
        self.take_quota(bytes, "page-locking host memory")
    }

    fn fill(&self, staging: &mut Buffer, bytes: &[u8]) -> Result<()> {
        if staging.readers.load(Ordering::SeqCst) > 0 {
            staging.races.fetch_add(1, Ordering::SeqCst);
        }
        staging.bytes.lock().unwrap()[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    #[expect(unsafe_code, reason = "as declared")]
    unsafe fn copy_staged(&self, lane: &Queue, from: &Buffer, bytes: usize, to: DeviceAddress) -> Result<()> {
        assert!(bytes <= from.locked.bytes);
        let (from, readers) = (Arc::clone(&from.bytes), Arc::clone(&from.readers));
        readers.fetch_add(1, Ordering::SeqCst);
        let done = Arc::clone(&readers);
        let queued = self.queue_copy(lane, to, bytes, move |slot, place, _| {
            slot[place].copy_from_slice(&from.lock().unwrap()[..bytes]);
            done.fetch_sub(1, Ordering::SeqCst);
        });
        queued.inspect_err(|_| {
            readers.fetch_sub(1, Ordering::SeqCst);
        })
    }

    #[expect(unsafe_code, reason = "as declared")]
    unsafe fn copy(&self, lane: &Queue, from: &[u8], to: DeviceAddress) -> Result<()> {
        let (address, length) = (from.as_ptr().expose_provenance(), from.len());
        self.queue_copy(lane, to, length, move |slot, place, rng| {
            // SAFETY: the caller keeps the bytes until the copy is done.
            let from = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(address), length) };
            let (first, second) = slot[place].split_at_mut(length / 2);
            first.copy_from_slice(&from[..length / 2]);
            dawdle(rng);
            second.copy_from_slice(&from[length / 2..]);
        })
    }

    fn record(&self, lane: &Queue) -> Result<Gate> {
        Ok(lane.record())
    }

    fn record_compute(&self) -> Result<Gate> {
        match self.no_compute_events.load(Ordering::SeqCst) {
            true => Err(refusal("recording an event", 999)),
            false => Ok(self.compute.lock().unwrap().record()),
        }
    }

    fn wait(&self, lane: &Queue, event: &Gate) -> Result<()> {
        if self.omit != Some(Omit::LaneWaits) {
            let event = event.clone();
            lane.push(move |_| event.pass());
        }
        Ok(())
    }

    fn synchronize(&self, event: &Gate) -> Result<()> {
        if self.omit != Some(Omit::HostWaits) {
            event.pass();
        }
        Ok(())
    }

    fn drain(&self, lane: &Queue) -> Result<()> {
        lane.record().pass();
        Ok(())
    }

    fn drain_all(&self) -> Result<()> {
        self.compute.lock().unwrap().record().pass();
        Ok(())
    }
}

impl Memory {
    fn enter_reader(&self, slot: usize) {
        let mut users = self.slots[slot].users.lock().unwrap();
        users.readers += 1;
        self.count_race(users.writers > 0);
    }

    fn enter_writer(&self, slot: usize) {
        let mut users = self.slots[slot].users.lock().unwrap();
        users.writers += 1;
        self.count_race(users.writers > 1 || users.readers > 0);
    }

    fn count_race(&self, race: bool) {
        self.races.fetch_add(usize::from(race), Ordering::SeqCst);
    }
}

impl Queue {
    fn new(seed: u64) -> Queue {
        let (jobs, receiver) = channel::<Job>();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let thread = std::thread::spawn(move || receiver.into_iter().for_each(|job| job(&mut rng)));
        Queue { jobs: Some(jobs), thread: Some(thread) }
    }

    fn push(&self, job: impl FnOnce(&mut ChaCha8Rng) + Send + 'static) {
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
    }

    fn record(&self) -> Gate {
        let gate = Gate::default();
        let event = gate.clone();
        self.push(move |_| event.open());
        gate
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.jobs = None;
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Gate {
    pub(super) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub(super) fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(open, |open| !*open).unwrap());
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.locked.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// Takes up to 300 microseconds, or no time.
fn dawdle(rng: &mut ChaCha8Rng) {
    match rng.random_range(0..4) {
        0 => {}
        1 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros(rng.random_range(0..300))),
    }
}

fn refusal(operation: &'static str, code: u32) -> OffloadError {
    OffloadError::Driver { operation, code, name: "stub".to_owned() }
}
