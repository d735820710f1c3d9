//! Order of copies and compute, on the GPU of threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use expert_cache::SlotId;
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::copies::{CopiedBytes, Copies};
use super::last_reads::LastReads;
use super::stub::{Gate, Omit, Stub};
use crate::error::Result;

/// Bytes of a projection.
const PROJECTION: usize = 100;
/// Bytes of a staging buffer: a projection takes three, the last of them not full.
const BUFFER: usize = 40;
/// Bytes of a page.
const PAGE: usize = 1;

/// A stub, its copies, and the last reads of its slots.
struct Rig {
    stub: Arc<Stub>,
    copies: Copies<Stub>,
    reads: LastReads<Stub>,
}

impl Rig {
    fn new(slots: usize, configure: impl FnOnce(Stub) -> Stub) -> Rig {
        let stub = Arc::new(configure(Stub::new(slots, 3 * PROJECTION)));
        let (copies, reads) = (Copies::new(Arc::clone(&stub), BUFFER), LastReads::new(Arc::clone(&stub), slots));
        Rig { stub, copies, reads }
    }

    #[expect(unsafe_code, reason = "as a bank would")]
    fn load(&self, slot: usize, expert: &[u8]) -> Result<()> {
        let place =
            |which| (&expert[which * PROJECTION..][..PROJECTION], self.stub.address(slot).plus(which * PROJECTION));
        // SAFETY: the addresses are those of the slot.
        unsafe { self.copies.load(&self.reads, SlotId(slot_number(slot)), [0, 1, 2].map(place)) }
    }

    /// Queues compute that reads slots and expects experts there; counts what it finds wrong.
    fn compute(&self, slots: &[usize], experts: Vec<Vec<u8>>, wrong: &Arc<AtomicUsize>) {
        let wrong = Arc::clone(wrong);
        let mut expected = slots.iter().copied().zip(experts).collect::<VecDeque<_>>();
        let queue = || {
            self.stub.compute(slots, move |slot, bytes| {
                let expected = expected.pop_front().unwrap();
                wrong.fetch_add(usize::from(expected != (slot, bytes.to_vec())), Ordering::SeqCst);
            });
            Ok(())
        };
        self.reads.compute(slots.iter().map(|&slot| SlotId(slot_number(slot))), queue).unwrap();
    }

    /// Waits until all compute is done.
    fn finish(&self) {
        super::driver::Driver::drain_all(&*self.stub).unwrap();
    }

    /// Locks experts where they lie.
    #[expect(unsafe_code, reason = "as a loader would")]
    fn lock(&self, experts: &Arc<Vec<Vec<u8>>>, limit_bytes: u64) -> super::Pinning {
        let ranges = experts.iter().map(|expert| {
            let start = expert.as_ptr().addr();
            start..start + expert.len()
        });
        // SAFETY: the experts live as long as their owner, who is handed over.
        unsafe { self.copies.lock(ranges, experts.clone(), PAGE, limit_bytes) }
    }
}

fn slot_number(slot: usize) -> u32 {
    u32::try_from(slot).unwrap()
}

/// An expert whose bytes all tell which it is.
fn expert(number: usize) -> Vec<u8> {
    (0..3 * PROJECTION).map(|i| u8::try_from((number * 31 + i * 7) % 251).unwrap()).collect()
}

#[test]
fn a_copy_into_a_slot_waits_for_the_compute_that_reads_it() {
    let rig = Rig::new(2, |stub| stub);
    rig.load(0, &expert(1)).unwrap();
    let (started, release) = (Gate::default(), Gate::default());
    let queue = || {
        rig.stub.compute_until(0, started.clone(), release.clone());
        Ok(())
    };
    rig.reads.compute([SlotId(0)].into_iter(), queue).unwrap();
    started.pass();
    thread::scope(|scope| {
        let load = scope.spawn(|| rig.load(0, &expert(2)));
        // A slot that nothing reads is loaded meanwhile: its load waits neither for the compute nor for the other load.
        rig.load(1, &expert(3)).unwrap();
        assert_eq!(rig.stub.bytes(1), expert(3));
        thread::sleep(Duration::from_millis(50));
        assert!(!load.is_finished());
        assert_eq!(rig.stub.bytes(0), expert(1));
        release.open();
        load.join().unwrap().unwrap();
    });
    assert_eq!(rig.stub.bytes(0), expert(2));
    assert_eq!(rig.stub.races(), 0);
}

#[test]
fn without_the_wait_of_the_copy_the_stub_sees_the_race() {
    let rig = Rig::new(1, |stub| stub.omitting(Omit::LaneWaits));
    let (started, release) = (Gate::default(), Gate::default());
    let queue = || {
        rig.stub.compute_until(0, started.clone(), release.clone());
        Ok(())
    };
    rig.reads.compute([SlotId(0)].into_iter(), queue).unwrap();
    started.pass();
    // Returns although the compute goes on.
    rig.load(0, &expert(2)).unwrap();
    assert!(rig.stub.races() > 0);
    release.open();
    rig.finish();
}

#[test]
fn without_the_waits_of_the_host_the_stub_sees_the_races() {
    let rig = Rig::new(1, |stub| stub.omitting(Omit::HostWaits));
    let (started, release) = (Gate::default(), Gate::default());
    let queue = || {
        rig.stub.compute_until(0, started.clone(), release.clone());
        Ok(())
    };
    rig.reads.compute([SlotId(0)].into_iter(), queue).unwrap();
    started.pass();
    // Nine copies through two buffers, all behind the compute: the third fills a buffer that the first has not read.
    rig.load(0, &expert(2)).unwrap();
    assert_eq!(rig.stub.races(), 7);
    // Nor has the load done what it said.
    assert_eq!(rig.stub.bytes(0), vec![0; 3 * PROJECTION]);
    release.open();
    rig.finish();
}

/// A bank that computes on some slots while workers load others, in seeded disorder.
fn bank(rig: &Rig, experts: &[Vec<u8>], seed: u64) {
    const SLOTS: usize = 6;
    const STEPS: usize = 40;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let wrong = Arc::new(AtomicUsize::new(0));
    let mut held = [None; SLOTS];
    for _ in 0..STEPS {
        // Three slots are wanted; two of the others are prefetched into while the three compute.
        let places = sample(&mut rng, SLOTS, 5).into_vec();
        let (wanted, ahead) = places.split_at(3);
        let load = |slot: usize, held: &mut Option<usize>, rng: &mut ChaCha8Rng| {
            let number = rng.random_range(0..experts.len());
            *held = Some(number);
            (slot, number)
        };
        let mut loads = Vec::new();
        for &slot in wanted {
            if held[slot].is_none() || rng.random_bool(0.5) {
                loads.push(load(slot, &mut held[slot], &mut rng));
            }
        }
        let run = |(slot, number): (usize, usize)| rig.load(slot, &experts[number]).unwrap();
        thread::scope(|scope| loads.into_iter().for_each(|load| drop(scope.spawn(move || run(load)))));
        let expected = wanted.iter().map(|&slot| experts[held[slot].unwrap()].clone()).collect();
        rig.compute(wanted, expected, &wrong);
        let prefetches = ahead.iter().map(|&slot| load(slot, &mut held[slot], &mut rng)).collect::<Vec<_>>();
        thread::scope(|scope| prefetches.into_iter().for_each(|load| drop(scope.spawn(move || run(load)))));
    }
    rig.finish();
    assert_eq!((rig.stub.races(), wrong.load(Ordering::SeqCst)), (0, 0));
    for (slot, number) in held.iter().enumerate() {
        number.iter().for_each(|&number| assert_eq!(rig.stub.bytes(slot), experts[number]));
    }
}

#[test]
fn loads_beside_compute_are_neither_torn_nor_early() {
    let experts = Arc::new((0..9).map(expert).collect::<Vec<_>>());
    let expert_bytes = experts[0].len();
    // Staged; locked; half of them locked; neither locked nor staged.
    let staged = Rig::new(6, |stub| stub);
    bank(&staged, &experts, 1);
    assert_eq!((staged.copies.copied().locked, staged.copies.copied().pageable), (0, 0));

    let locked = Rig::new(6, |stub| stub);
    assert_eq!(locked.lock(&experts, u64::MAX).refusal, None);
    bank(&locked, &experts, 2);
    assert_eq!((locked.copies.copied().staged, locked.copies.copied().pageable), (0, 0));
    assert_eq!(locked.stub.locked_bytes(), 9 * expert_bytes);

    let half = Rig::new(6, |stub| stub);
    assert_eq!(half.lock(&experts, 5 * expert_bytes as u64).refused_bytes, 4 * expert_bytes as u64);
    bank(&half, &experts, 3);
    let CopiedBytes { locked, staged, pageable } = half.copies.copied();
    assert!(locked > 0 && staged > 0 && pageable == 0);

    let pageable = Rig::new(6, |stub| stub.with_quota(0));
    bank(&pageable, &experts, 4);
    assert_eq!((pageable.copies.copied().locked, pageable.copies.copied().staged), (0, 0));
    assert!(pageable.copies.pinning().refusal.is_some());
}

#[test]
fn several_threads_compute_and_load_at_once() {
    // Each thread has two slots of its own, as a bank of several layers has; lanes and compute are shared.
    let rig = Rig::new(8, |stub| stub);
    let wrong = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..4 {
            let (rig, wrong) = (&rig, &wrong);
            scope.spawn(move || {
                for step in 0..40 {
                    let slot = 2 * thread + step % 2;
                    rig.load(slot, &expert(thread + step)).unwrap();
                    rig.compute(&[slot], vec![expert(thread + step)], wrong);
                }
            });
        }
    });
    rig.finish();
    assert_eq!((rig.stub.races(), wrong.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn a_copy_waits_for_the_compute_of_every_thread() {
    let rig = Rig::new(1, |stub| stub);
    let wrong = Arc::new(AtomicUsize::new(0));
    for step in 0..30 {
        rig.load(0, &expert(step)).unwrap();
        thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(|| rig.compute(&[0], vec![expert(step)], &wrong))));
        });
    }
    rig.finish();
    assert_eq!((rig.stub.races(), wrong.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn a_failed_load_leaves_nothing_behind_and_the_next_one_works() {
    // The fifth copy fails: four are in the lane then, and read buffers.
    let rig = Rig::new(1, |stub| stub.with_failing_copy(4));
    let error = rig.load(0, &expert(1)).unwrap_err();
    assert_eq!(error.to_string(), "copy failed on the GPU: stub (700)");
    let torn = rig.stub.bytes(0);
    thread::sleep(Duration::from_millis(5));
    assert_eq!(rig.stub.bytes(0), torn);
    rig.load(0, &expert(2)).unwrap();
    assert_eq!(rig.stub.bytes(0), expert(2));
    assert_eq!(rig.stub.races(), 0);
    // Both loads used the same lane.
    assert_eq!(rig.copies.pinning().staging_bytes, 2 * BUFFER as u64);
}

#[test]
fn compute_without_an_event_holds_copies_back_all_the_same() {
    let rig = Rig::new(1, |stub| stub);
    rig.load(0, &expert(1)).unwrap();
    let seen = Arc::new(Mutex::new(Vec::<u8>::new()));
    let queue = || {
        let seen = Arc::clone(&seen);
        rig.stub.compute(&[0], move |_, bytes| seen.lock().unwrap().extend(bytes));
        Ok(())
    };
    rig.stub.no_compute_events.store(true, Ordering::SeqCst);
    assert!(rig.reads.compute([SlotId(0)].into_iter(), queue).is_err());
    rig.load(0, &expert(2)).unwrap();
    assert_eq!(*seen.lock().unwrap(), expert(1));
    assert_eq!(rig.stub.races(), 0);
}

#[test]
fn compute_that_fails_half_way_is_waited_for() {
    let rig = Rig::new(1, |stub| stub);
    rig.load(0, &expert(1)).unwrap();
    let (started, release) = (Gate::default(), Gate::default());
    let queue = || -> Result<()> {
        rig.stub.compute_until(0, started.clone(), release.clone());
        Err(crate::OffloadError::StreamPerThread)
    };
    assert!(rig.reads.compute([SlotId(0)].into_iter(), queue).is_err());
    started.pass();
    thread::scope(|scope| {
        let load = scope.spawn(|| rig.load(0, &expert(2)));
        thread::sleep(Duration::from_millis(20));
        assert!(!load.is_finished());
        release.open();
        load.join().unwrap().unwrap();
    });
    assert_eq!(rig.stub.races(), 0);
}
