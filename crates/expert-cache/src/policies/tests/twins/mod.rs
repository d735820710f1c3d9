//! Textbook forms of the policies, slow and written with plain vectors (oldest first), to compare with.

mod adaptive;
mod agreement;
mod contest;
mod distances;
mod dwelling;
mod fading;
mod layers;
mod one_list;
mod priorities;
mod queues;
mod similarity;
mod staleness;

use std::fmt;

use moe_trace::ExpertSet;

use self::adaptive::Adaptive;
use self::contest::Contest;
use self::distances::Distances;
use self::dwelling::Dwelling;
use self::fading::{Fading, LeastScore};
use self::layers::Layers;
use self::one_list::{Counts, Hand, Queue, Recency, Ring};
use self::queues::{Segments, ThreeQueues, TwoQueues};
use self::similarity::Similarity;
use self::staleness::Staleness;
use crate::key::ExpertKey;
use crate::policies::PolicyKind;
use crate::policy::{EvictionPolicy, PoolShape};
use crate::request::Request;

/// A policy as textbooks tell it: on a hit, on a miss, evict, insert.
pub(super) trait Textbook: fmt::Debug + Send {
    /// A request begins.
    fn begin(&mut self, _request: &Request<'_>) {}
    fn is_resident(&self, expert: usize) -> bool;
    fn hit(&mut self, expert: usize);
    fn miss(&mut self, _expert: usize) {}
    /// Removes a resident that is not pinned, if there is one, and does with it what is done with evicted experts;
    /// `None` bypasses.
    fn evict(&mut self, incoming: usize, pinned: &ExpertSet) -> Option<usize>;
    fn insert(&mut self, expert: usize);
    /// The next request is another sequence's.
    fn sequence_end(&mut self) {}
}

#[derive(Debug)]
pub(super) struct Twin(Box<dyn Textbook>);

impl Twin {
    pub(super) fn new(kind: PolicyKind, shape: PoolShape, capacity: usize) -> Option<Twin> {
        Some(Twin(match kind {
            PolicyKind::Lru => Box::new(Recency::default()),
            PolicyKind::Fifo => Box::new(Queue::default()),
            PolicyKind::Clock => Box::new(Ring { frames: vec![None; capacity], hand: 0 }),
            PolicyKind::Sieve => Box::new(Hand::default()),
            PolicyKind::LfuInCache => Box::new(Counts { aging: false, ..Counts::default() }),
            PolicyKind::LfuAged => Box::new(Counts { aging: true, ..Counts::default() }),
            PolicyKind::Slru => Box::new(Segments { half: capacity / 2, ..Segments::default() }),
            PolicyKind::TwoQueue => Box::new(TwoQueues { capacity, ..TwoQueues::default() }),
            PolicyKind::S3Fifo => Box::new(ThreeQueues { capacity, ..ThreeQueues::default() }),
            PolicyKind::Arc => Box::new(Adaptive { capacity, ..Adaptive::default() }),
            PolicyKind::LayerLru => Box::new(Layers::new(shape)),
            PolicyKind::Lirs => Box::new(Distances { capacity, ..Distances::default() }),
            PolicyKind::WTinyLfu => Box::new(Contest { capacity, ..Contest::default() }),
            PolicyKind::LeastStale => Box::new(Staleness::new(shape)),
            PolicyKind::Lfru { memory } => Box::new(LeastScore::new(Fading::new(shape, memory), false)),
            PolicyKind::RouterMass { memory } => Box::new(LeastScore::new(Fading::new(shape, memory), true)),
            PolicyKind::Hysteresis { dwell } => Box::new(Dwelling::new(shape, dwell)),
            PolicyKind::ActivationAware { sequences } => Box::new(Similarity::new(shape, sequences)),
            _ => return None,
        }))
    }
}

impl EvictionPolicy for Twin {
    fn on_request(&mut self, request: &Request<'_>) {
        self.0.begin(request);
        for expert in request.wanted().iter() {
            if self.0.is_resident(expert) { self.0.hit(expert) } else { self.0.miss(expert) }
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.0.insert(expert.index());
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        assert!(!self.0.is_resident(expert.index()), "a twin evicts when it is asked for a victim");
    }

    fn victim(&mut self, incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.0.evict(incoming.index(), pinned).map(ExpertKey::from_index)
    }

    fn sequence_end(&mut self) {
        self.0.sequence_end();
    }
}

fn take(from: &mut Vec<usize>, expert: usize) -> bool {
    let found = from.contains(&expert);
    from.retain(|&member| member != expert);
    found
}

fn take_oldest(from: &mut Vec<usize>, pinned: &ExpertSet) -> Option<usize> {
    let oldest = from.iter().copied().find(|&expert| !pinned.contains(expert))?;
    take(from, oldest);
    Some(oldest)
}
