use proptest::prelude::*;

use super::*;

const HERE: Place = Place { pool: 0, slot: SlotId(0) };

fn demand(key: u32) -> Job {
    Job { place: HERE, key: ExpertKey(key), reason: Reason::Demand(Phase::Decode) }
}

fn prefetch(key: u32) -> Job {
    Job { reason: Reason::Prefetch, ..demand(key) }
}

fn failed() -> Result<(), OffloadError> {
    Err(OffloadError::NotOnHost)
}

fn arrival(order: &mut SlotOrder, key: u32) -> Arrival {
    order.arrival(HERE, ExpertKey(key), Phase::Decode)
}

#[test]
fn a_copy_waits_for_the_reads_before_it() {
    let mut order = SlotOrder::new(&[1]);
    for key in [1, 2] {
        order.write(demand(key));
        order.read(HERE, ExpertKey(key));
    }
    let first = order.begin(false).unwrap();
    assert_eq!(first, demand(1));
    assert_eq!(order.begin(true), None);
    order.ended(&first, Ok(()));
    assert!(matches!(arrival(&mut order, 1), Arrival::Ready));
    assert!(matches!(arrival(&mut order, 2), Arrival::Waiting));
    assert_eq!(order.begin(true), None);
    order.read_done(HERE);
    assert_eq!(order.begin_demand_of(1), None);
    let (_, second) = order.begin_demand_of(0).unwrap();
    assert_eq!(order.holds(HERE), None);
    order.ended(&second, failed());
    assert!(matches!(arrival(&mut order, 2), Arrival::Failed(_)));
    order.abandon(HERE);
    order.assert_idle();
}

#[test]
fn loads_begin_in_the_order_of_planning_whenever_their_slots_were_left() {
    let mut order = SlotOrder::new(&[3]);
    let place = |slot| Place { pool: 0, slot: SlotId(slot) };
    // Slots 1 and 0 are written again, in this order, but 0 is left first; 2 is for later.
    for (slot, key) in [(0, 1), (1, 2), (1, 3), (0, 4)] {
        order.write(Job { place: place(slot), ..demand(key) });
        order.read(place(slot), ExpertKey(key));
    }
    order.write(Job { place: place(2), ..prefetch(5) });
    let first = order.begin_demand_of(0).unwrap();
    let second = order.begin_demand(first.0.next()).unwrap();
    assert_eq!((first.1.key, second.key), (ExpertKey(1), ExpertKey(2)));
    // The third was planned for a slot that is still to be read.
    order.ended(&first.1, Ok(()));
    order.read_done(place(0));
    assert_eq!(order.begin_demand(first.0.next().next()), None);
    order.ended(&second, Ok(()));
    order.read_done(place(1));
    let keys = [(); 3].map(|()| order.begin(true).unwrap().key);
    assert_eq!(keys, [3, 4, 5].map(ExpertKey));
}

#[test]
fn a_wanted_prefetch_becomes_a_demand() {
    let mut order = SlotOrder::new(&[1]);
    order.write(prefetch(3));
    assert_eq!(order.begin(false), None);
    assert_eq!(order.read_resident(HERE, ExpertKey(3), Phase::Decode), Residence::Loading);
    order.validate();
    let job = order.begin(false).unwrap();
    assert_eq!(job, prefetch(3));
    // It fails, and is loaded again for the call that waits.
    order.ended(&job, failed());
    assert!(matches!(arrival(&mut order, 3), Arrival::Requeued));
    let again = order.begin(false).unwrap();
    assert_eq!(again, demand(3));
    order.ended(&again, Ok(()));
    assert!(matches!(arrival(&mut order, 3), Arrival::Ready));
    order.read_done(HERE);
    assert_eq!(order.read_resident(HERE, ExpertKey(3), Phase::Decode), Residence::Resident);
    order.read_done(HERE);
    order.assert_idle();
}

#[test]
fn a_prefetch_in_vain_is_called_off_unless_it_runs() {
    let mut order = SlotOrder::new(&[1]);
    assert!(!order.write(prefetch(1)));
    assert!(order.write(prefetch(2)));
    let running = order.begin(true).unwrap();
    assert_eq!(running, prefetch(2));
    assert!(!order.write(demand(3)));
    order.read(HERE, ExpertKey(3));
    assert_eq!(order.begin(true), None);
    order.ended(&running, Ok(()));
    assert_eq!(order.begin(true), Some(demand(3)));
    assert!(order.demand_runs(HERE));
}

#[test]
fn an_expert_whose_load_failed_is_lost() {
    let mut order = SlotOrder::new(&[1]);
    order.write(prefetch(1));
    let job = order.begin(true).unwrap();
    order.ended(&job, failed());
    order.assert_idle();
    assert_eq!(order.read_resident(HERE, ExpertKey(1), Phase::Decode), Residence::Lost);
    assert_eq!(order.begin(false), Some(demand(1)));
}

proptest! {
    /// Whatever happens in which order: the queues hold exactly what could begin, reads find what was planned for
    /// them, and nothing is left in the end.
    #[test]
    fn steps_follow_the_plan(steps in proptest::collection::vec((0u8..8, 0u32..3, 0u32..4), 0..80)) {
        let mut order = SlotOrder::new(&[3]);
        let place = |slot| Place { pool: 0, slot: SlotId(slot) };
        // What the cache takes for resident, and what a call is still to read, by slot.
        let (mut resident, mut unread, mut running) = ([None; 3], [None; 3], Vec::new());
        for (action, slot, key) in steps {
            let (at, key) = (slot as usize, ExpertKey(key));
            match action {
                0 => {
                    order.write(Job { place: place(slot), ..prefetch(key.0) });
                    resident[at] = Some(key);
                }
                1 if unread[at].is_none() => {
                    order.write(Job { place: place(slot), ..demand(key.0) });
                    order.read(place(slot), key);
                    (resident[at], unread[at]) = (Some(key), Some(key));
                }
                2 if unread[at].is_none() => {
                    if let Some(key) = resident[at] {
                        order.read_resident(place(slot), key, Phase::Decode);
                        unread[at] = Some(key);
                    }
                }
                3 | 4 => running.extend(order.begin(action == 3)),
                5 | 6 => {
                    if let Some(job) = running.pop() {
                        order.ended(&job, if action == 5 { Ok(()) } else { failed() });
                    }
                }
                7 => {
                    order.abandon(place(slot));
                    unread[at] = None;
                }
                _ => {}
            }
            order.validate();
            for (slot, wanted) in (0..).zip(&mut unread) {
                let Some(key) = *wanted else { continue };
                match order.arrival(place(slot), key, Phase::Decode) {
                    Arrival::Ready => {
                        prop_assert_eq!(order.holds(place(slot)), Some(key));
                        order.read_done(place(slot));
                        *wanted = None;
                    }
                    Arrival::Waiting | Arrival::Requeued => {}
                    Arrival::Failed(_) => {
                        order.abandon(place(slot));
                        *wanted = None;
                    }
                }
            }
            order.validate();
        }
        (0..3).for_each(|slot| order.abandon(place(slot)));
        while let Some(job) = running.pop().or_else(|| order.begin(true)) {
            order.ended(&job, Ok(()));
        }
        order.assert_idle();
    }
}
