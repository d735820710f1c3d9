//! Textbook forms of the policies, slow and written with plain vectors (oldest first), to compare with.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use moe_trace::ExpertSet;

use crate::{EvictionPolicy, ExpertKey, PolicyKind, PoolShape, Request};

/// A policy as textbooks tell it: on a hit, on a miss, evict, insert.
pub(super) trait Textbook: fmt::Debug + Send {
    /// A request begins.
    fn begin(&mut self) {}
    fn is_resident(&self, expert: usize) -> bool;
    fn hit(&mut self, expert: usize);
    fn miss(&mut self, _expert: usize) {}
    /// Removes a resident that is not pinned, if there is one, and does with it what is done with evicted experts.
    fn evict(&mut self, incoming: usize, pinned: &ExpertSet) -> Option<usize>;
    fn insert(&mut self, expert: usize);
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
            _ => return None,
        }))
    }
}

impl EvictionPolicy for Twin {
    fn step(&mut self, request: &Request<'_>) {
        self.0.begin();
        for expert in request.wanted().iter() {
            if self.0.is_resident(expert) { self.0.hit(expert) } else { self.0.miss(expert) }
        }
    }

    fn admit(&mut self, expert: ExpertKey) {
        self.0.insert(expert.index());
    }

    fn forget(&mut self, expert: ExpertKey) {
        assert!(!self.0.is_resident(expert.index()), "a twin evicts when it is asked for a victim");
    }

    fn victim(&mut self, incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.0.evict(incoming.index(), pinned).map(ExpertKey::from_index)
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

#[derive(Debug, Default)]
struct Recency(Vec<usize>);

impl Textbook for Recency {
    fn is_resident(&self, expert: usize) -> bool {
        self.0.contains(&expert)
    }

    fn hit(&mut self, expert: usize) {
        take(&mut self.0, expert);
        self.0.push(expert);
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        take_oldest(&mut self.0, pinned)
    }

    fn insert(&mut self, expert: usize) {
        self.0.push(expert);
    }
}

#[derive(Debug, Default)]
struct Queue(Vec<usize>);

impl Textbook for Queue {
    fn is_resident(&self, expert: usize) -> bool {
        self.0.contains(&expert)
    }

    fn hit(&mut self, _expert: usize) {}

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        take_oldest(&mut self.0, pinned)
    }

    fn insert(&mut self, expert: usize) {
        self.0.push(expert);
    }
}

/// Frames in a ring, with a reference bit each; a newcomer takes the frame under the hand.
#[derive(Debug)]
struct Ring {
    frames: Vec<Option<(usize, bool)>>,
    hand: usize,
}

impl Textbook for Ring {
    fn is_resident(&self, expert: usize) -> bool {
        self.frames.iter().flatten().any(|frame| frame.0 == expert)
    }

    fn hit(&mut self, expert: usize) {
        self.frames.iter_mut().flatten().filter(|frame| frame.0 == expert).for_each(|frame| frame.1 = true);
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        for _ in 0..2 * self.frames.len() {
            let frame = &mut self.frames[self.hand];
            let (expert, used) = frame.expect("a full ring");
            if !pinned.contains(expert) {
                if !used {
                    *frame = None;
                    return Some(expert);
                }
                *frame = Some((expert, false));
            }
            self.hand = (self.hand + 1) % self.frames.len();
        }
        None
    }

    fn insert(&mut self, expert: usize) {
        assert!(self.frames[self.hand].is_none());
        self.frames[self.hand] = Some((expert, false));
        self.hand = (self.hand + 1) % self.frames.len();
    }
}

/// SIEVE, with its hand as a number of older experts.
#[derive(Debug, Default)]
struct Hand {
    order: Vec<(usize, bool)>,
    hand: usize,
}

impl Textbook for Hand {
    fn is_resident(&self, expert: usize) -> bool {
        self.order.iter().any(|entry| entry.0 == expert)
    }

    fn hit(&mut self, expert: usize) {
        self.order.iter_mut().filter(|entry| entry.0 == expert).for_each(|entry| entry.1 = true);
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        for _ in 0..2 * self.order.len() {
            if self.hand == self.order.len() {
                self.hand = 0;
            }
            let (expert, used) = self.order[self.hand];
            if !pinned.contains(expert) {
                if !used {
                    self.order.remove(self.hand);
                    // At the newest end the next search begins at the oldest, whoever comes in.
                    if self.hand == self.order.len() {
                        self.hand = 0;
                    }
                    return Some(expert);
                }
                self.order[self.hand].1 = false;
            }
            self.hand += 1;
        }
        if self.hand == self.order.len() {
            self.hand = 0;
        }
        None
    }

    fn insert(&mut self, expert: usize) {
        self.order.push((expert, false));
    }
}

/// LFU of the residents, and with dynamic aging.
#[derive(Debug, Default)]
struct Counts {
    aging: bool,
    age: u64,
    clock: u64,
    /// Uses, value, time of the last request.
    entries: BTreeMap<usize, (u64, u64, u64)>,
}

impl Textbook for Counts {
    fn begin(&mut self) {
        self.clock += 1;
    }

    fn is_resident(&self, expert: usize) -> bool {
        self.entries.contains_key(&expert)
    }

    fn hit(&mut self, expert: usize) {
        let (uses, value, last_use) = self.entries.get_mut(&expert).expect("resident");
        *uses += 1;
        *value = *uses + self.age;
        *last_use = self.clock;
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        let evictable = self.entries.iter().filter(|(expert, _)| !pinned.contains(**expert));
        let lowest = evictable.min_by_key(|&(expert, &(_, value, last_use))| (value, last_use, *expert));
        let expert = *lowest?.0;
        let (_, value, _) = self.entries.remove(&expert)?;
        if self.aging {
            self.age = value;
        }
        Some(expert)
    }

    fn insert(&mut self, expert: usize) {
        self.entries.insert(expert, (1, 1 + self.age, self.clock));
    }
}

#[derive(Debug, Default)]
struct Segments {
    half: usize,
    probation: Vec<usize>,
    protected: Vec<usize>,
}

impl Textbook for Segments {
    fn is_resident(&self, expert: usize) -> bool {
        self.probation.contains(&expert) || self.protected.contains(&expert)
    }

    fn hit(&mut self, expert: usize) {
        take(&mut self.probation, expert);
        take(&mut self.protected, expert);
        self.protected.push(expert);
        if self.protected.len() > self.half {
            self.probation.push(self.protected.remove(0));
        }
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        take_oldest(&mut self.probation, pinned).or_else(|| take_oldest(&mut self.protected, pinned))
    }

    fn insert(&mut self, expert: usize) {
        if self.probation.len() >= self.half && self.protected.len() < self.half {
            self.protected.push(expert);
        } else {
            self.probation.push(expert);
        }
    }
}

/// 2Q.
#[derive(Debug, Default)]
struct TwoQueues {
    capacity: usize,
    a1_in: Vec<usize>,
    a1_out: Vec<usize>,
    am: Vec<usize>,
    /// Wanted now, and remembered until now.
    returning: BTreeSet<usize>,
}

impl Textbook for TwoQueues {
    fn begin(&mut self) {
        self.returning.clear();
    }

    fn is_resident(&self, expert: usize) -> bool {
        self.a1_in.contains(&expert) || self.am.contains(&expert)
    }

    fn hit(&mut self, expert: usize) {
        if take(&mut self.am, expert) {
            self.am.push(expert);
        }
    }

    fn miss(&mut self, expert: usize) {
        if take(&mut self.a1_out, expert) {
            self.returning.insert(expert);
        }
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        let prefers_in = self.a1_in.len() > (self.capacity / 4).max(1);
        let mut from_in = || {
            let expert = take_oldest(&mut self.a1_in, pinned)?;
            self.a1_out.push(expert);
            if self.a1_out.len() > (self.capacity / 2).max(1) {
                self.a1_out.remove(0);
            }
            Some(expert)
        };
        let mut from_am = || take_oldest(&mut self.am, pinned);
        if prefers_in { from_in().or_else(from_am) } else { from_am().or_else(from_in) }
    }

    fn insert(&mut self, expert: usize) {
        if self.returning.remove(&expert) { self.am.push(expert) } else { self.a1_in.push(expert) }
    }
}

/// S3-FIFO.
#[derive(Debug, Default)]
struct ThreeQueues {
    capacity: usize,
    small: VecDeque<(usize, u8)>,
    main: VecDeque<(usize, u8)>,
    ghost: VecDeque<usize>,
    returning: BTreeSet<usize>,
    has_evicted: bool,
}

impl ThreeQueues {
    fn small_slots(&self) -> usize {
        (self.capacity / 10).max(1)
    }

    fn evict_small(&mut self, pinned: &ExpertSet) -> Option<usize> {
        let mut kept = VecDeque::new();
        let mut victim = None;
        while let Some((expert, uses)) = self.small.pop_front() {
            if victim.is_some() || pinned.contains(expert) {
                kept.push_back((expert, uses));
            } else if uses >= 2 {
                self.main.push_back((expert, 0));
            } else {
                victim = Some(expert);
            }
        }
        self.small = kept;
        self.ghost.extend(victim);
        while self.ghost.len() > self.capacity * 9 / 10 {
            self.ghost.pop_front();
        }
        victim
    }

    fn evict_main(&mut self, pinned: &ExpertSet) -> Option<usize> {
        loop {
            // The pinned ones stay where they are; the first of the others is judged.
            let at = self.main.iter().position(|entry| !pinned.contains(entry.0))?;
            let (expert, uses) = self.main.remove(at)?;
            if uses == 0 {
                return Some(expert);
            }
            self.main.push_back((expert, uses - 1));
        }
    }
}

impl Textbook for ThreeQueues {
    fn begin(&mut self) {
        self.returning.clear();
    }

    fn is_resident(&self, expert: usize) -> bool {
        self.small.iter().chain(&self.main).any(|entry| entry.0 == expert)
    }

    fn hit(&mut self, expert: usize) {
        let entry = self.small.iter_mut().chain(&mut self.main).find(|entry| entry.0 == expert);
        let uses = &mut entry.expect("resident").1;
        *uses = (*uses + 1).min(3);
    }

    fn miss(&mut self, expert: usize) {
        if self.ghost.contains(&expert) {
            self.ghost.retain(|&member| member != expert);
            self.returning.insert(expert);
        }
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        self.has_evicted = true;
        if self.main.len() > self.capacity - self.small_slots()
            && let Some(victim) = self.evict_main(pinned)
        {
            return Some(victim);
        }
        self.evict_small(pinned).or_else(|| self.evict_main(pinned))
    }

    fn insert(&mut self, expert: usize) {
        let overflows = !self.has_evicted && self.small.len() >= self.small_slots();
        if self.returning.remove(&expert) || overflows {
            self.main.push_back((expert, 0));
        } else {
            self.small.push_back((expert, 0));
        }
    }
}

/// ARC by the cases of its source.
#[derive(Debug, Default)]
struct Adaptive {
    capacity: usize,
    t1: Vec<usize>,
    t2: Vec<usize>,
    b1: Vec<usize>,
    b2: Vec<usize>,
    p: f64,
    from_b1: BTreeSet<usize>,
    from_b2: BTreeSet<usize>,
}

#[expect(clippy::cast_precision_loss, reason = "small lists")]
fn size(list: &[usize]) -> f64 {
    list.len() as f64
}

impl Adaptive {
    fn replace(&mut self, in_b2: bool, pinned: &ExpertSet) -> Option<usize> {
        let t1 = size(&self.t1);
        let from_t1 = (!self.t1.is_empty() && (t1 > self.p || (in_b2 && t1 == self.p))) || self.t2.is_empty();
        for first in [from_t1, !from_t1] {
            let (list, ghosts) = if first { (&mut self.t1, &mut self.b1) } else { (&mut self.t2, &mut self.b2) };
            if let Some(expert) = take_oldest(list, pinned) {
                ghosts.push(expert);
                return Some(expert);
            }
        }
        None
    }
}

impl Textbook for Adaptive {
    fn begin(&mut self) {
        self.from_b1.clear();
        self.from_b2.clear();
    }

    fn is_resident(&self, expert: usize) -> bool {
        self.t1.contains(&expert) || self.t2.contains(&expert)
    }

    /// Case I.
    fn hit(&mut self, expert: usize) {
        take(&mut self.t1, expert);
        take(&mut self.t2, expert);
        self.t2.push(expert);
    }

    /// Cases II and III, up to REPLACE.
    #[expect(clippy::cast_precision_loss, reason = "a small capacity")]
    fn miss(&mut self, expert: usize) {
        let (b1, b2) = (size(&self.b1), size(&self.b2));
        if take(&mut self.b1, expert) {
            self.p = f64::min(self.p + f64::max(b2 / b1, 1.0), self.capacity as f64);
            self.from_b1.insert(expert);
        } else if take(&mut self.b2, expert) {
            self.p = f64::max(self.p - f64::max(b1 / b2, 1.0), 0.0);
            self.from_b2.insert(expert);
        }
    }

    fn evict(&mut self, incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        if self.t1.iter().chain(&self.t2).all(|&expert| pinned.contains(expert)) {
            return None;
        }
        if self.from_b1.contains(&incoming) || self.from_b2.contains(&incoming) {
            return self.replace(self.from_b2.contains(&incoming), pinned);
        }
        // Case IV.
        let l1 = self.t1.len() + self.b1.len();
        let all = l1 + self.t2.len() + self.b2.len();
        if l1 >= self.capacity {
            if self.t1.len() >= self.capacity {
                return take_oldest(&mut self.t1, pinned);
            }
            self.b1.remove(0);
        } else if all >= 2 * self.capacity {
            self.b2.remove(0);
        }
        self.replace(false, pinned)
    }

    fn insert(&mut self, expert: usize) {
        let returns = self.from_b1.remove(&expert) | self.from_b2.remove(&expert);
        if returns {
            self.t2.push(expert)
        } else {
            self.t1.push(expert)
        }
        // The source's bounds, which its cases keep by themselves if experts come one at a time.
        while self.t1.len() + self.b1.len() > self.capacity {
            self.b1.remove(0);
        }
        while self.t1.len() + self.b1.len() + self.t2.len() + self.b2.len() > 2 * self.capacity {
            self.b2.remove(0);
        }
    }
}

/// LIRS.
#[derive(Debug, Default)]
struct Distances {
    capacity: usize,
    stack: Vec<usize>,
    lir: BTreeSet<usize>,
    queue: Vec<usize>,
    /// Evicted experts that are in the stack, in order of eviction.
    evicted: Vec<usize>,
    /// Wanted now, and evicted until now.
    returning: Vec<usize>,
}

impl Distances {
    fn lir_slots(&self) -> usize {
        self.capacity - (self.capacity / 100).max(1)
    }

    fn raise(&mut self, expert: usize) {
        take(&mut self.stack, expert);
        self.stack.push(expert);
    }

    /// Puts the stack in order: it ends at a LIR expert, and is not too long.
    fn prune(&mut self) {
        let bottom = self.stack.iter().position(|expert| self.lir.contains(expert)).unwrap_or(self.stack.len());
        let pruned: Vec<usize> = self.stack.drain(..bottom).collect();
        self.evicted.retain(|expert| !pruned.contains(expert));
        self.returning.retain(|expert| !pruned.contains(expert));
    }

    fn limit(&mut self) {
        while self.stack.len() > 2 * self.capacity && !self.evicted.is_empty() {
            let oldest = self.evicted.remove(0);
            take(&mut self.stack, oldest);
        }
    }

    fn promote(&mut self, expert: usize) {
        self.lir.insert(expert);
        self.raise(expert);
        self.prune();
        if self.lir.len() > self.lir_slots() {
            let bottom = self.stack.remove(0);
            self.lir.remove(&bottom);
            self.queue.push(bottom);
            self.prune();
        }
    }
}

impl Textbook for Distances {
    fn begin(&mut self) {
        self.evicted.extend(std::mem::take(&mut self.returning));
    }

    fn is_resident(&self, expert: usize) -> bool {
        self.lir.contains(&expert) || self.queue.contains(&expert)
    }

    fn hit(&mut self, expert: usize) {
        if self.lir.contains(&expert) {
            self.raise(expert);
            self.prune();
        } else {
            take(&mut self.queue, expert);
            if self.stack.contains(&expert) && self.lir_slots() > 0 {
                self.promote(expert);
            } else {
                self.raise(expert);
                self.queue.push(expert);
            }
        }
        self.limit();
    }

    fn miss(&mut self, expert: usize) {
        if take(&mut self.evicted, expert) {
            self.raise(expert);
            self.returning.push(expert);
        }
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        if let Some(expert) = take_oldest(&mut self.queue, pinned) {
            if self.stack.contains(&expert) {
                self.evicted.push(expert);
            }
            return Some(expert);
        }
        let expert =
            self.stack.iter().copied().find(|expert| self.lir.contains(expert) && !pinned.contains(*expert))?;
        self.lir.remove(&expert);
        take(&mut self.stack, expert);
        self.prune();
        Some(expert)
    }

    fn insert(&mut self, expert: usize) {
        let returns = take(&mut self.returning, expert);
        if self.lir.len() < self.lir_slots() || (returns && self.lir_slots() > 0) {
            self.promote(expert);
        } else {
            self.raise(expert);
            self.queue.push(expert);
        }
        self.limit();
    }
}

/// Layer-aware LRU: every resident is judged by its age, its layer and its place in the order of use.
#[derive(Debug)]
struct Layers {
    shape: PoolShape,
    order: Vec<usize>,
    runs: Vec<usize>,
    last_run: BTreeMap<usize, usize>,
    /// The layer that runs, and whether the running request has said so.
    running: (usize, bool),
}

impl Layers {
    fn new(shape: PoolShape) -> Layers {
        let runs = vec![0; shape.layers];
        Layers { shape, order: Vec::new(), runs, last_run: BTreeMap::new(), running: (0, false) }
    }

    fn run(&mut self, expert: usize) {
        let layer = expert / self.shape.experts;
        if !self.running.1 || self.running.0 != layer {
            self.runs[layer] += 1;
            self.running = (layer, true);
        }
    }
}

impl Textbook for Layers {
    fn begin(&mut self) {
        self.running.1 = false;
    }

    fn is_resident(&self, expert: usize) -> bool {
        self.order.contains(&expert)
    }

    fn hit(&mut self, expert: usize) {
        self.run(expert);
        take(&mut self.order, expert);
        self.insert(expert);
    }

    fn miss(&mut self, expert: usize) {
        self.run(expert);
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        let layer = |expert: usize| expert / self.shape.experts;
        let age = |expert: usize| self.runs[layer(expert)] - self.last_run[&expert];
        let turn = |expert: usize| (layer(expert) + self.shape.layers - self.running.0 - 1) % self.shape.layers;
        let evictable = self.order.iter().copied().filter(|&expert| !pinned.contains(expert)).enumerate();
        let (_, victim) = evictable.max_by_key(|&(at, expert)| (age(expert), turn(expert), std::cmp::Reverse(at)))?;
        take(&mut self.order, victim);
        Some(victim)
    }

    fn insert(&mut self, expert: usize) {
        self.last_run.insert(expert, self.runs[expert / self.shape.experts]);
        self.order.push(expert);
    }
}
