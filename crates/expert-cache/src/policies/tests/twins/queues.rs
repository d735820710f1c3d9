//! Twins of two queues and more.

use std::collections::{BTreeSet, VecDeque};

use moe_trace::ExpertSet;

use super::{Textbook, take, take_oldest};
use crate::request::Request;

#[derive(Debug, Default)]
pub(super) struct Segments {
    pub(super) half: usize,
    pub(super) probation: Vec<usize>,
    pub(super) protected: Vec<usize>,
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
pub(super) struct TwoQueues {
    pub(super) capacity: usize,
    pub(super) a1_in: Vec<usize>,
    pub(super) a1_out: Vec<usize>,
    pub(super) am: Vec<usize>,
    /// Wanted now, and remembered until now.
    pub(super) returning: BTreeSet<usize>,
}

impl Textbook for TwoQueues {
    fn begin(&mut self, _request: &Request<'_>) {
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
pub(super) struct ThreeQueues {
    pub(super) capacity: usize,
    pub(super) small: VecDeque<(usize, u8)>,
    pub(super) main: VecDeque<(usize, u8)>,
    pub(super) ghost: VecDeque<usize>,
    pub(super) returning: BTreeSet<usize>,
    pub(super) has_evicted: bool,
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
    fn begin(&mut self, _request: &Request<'_>) {
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
