//! Twins that keep what is resident in one list.

use std::collections::BTreeMap;

use moe_trace::ExpertSet;

use super::{Textbook, take, take_oldest};
use crate::request::Request;

#[derive(Debug, Default)]
pub(super) struct Recency(Vec<usize>);

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
pub(super) struct Queue(Vec<usize>);

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
pub(super) struct Ring {
    pub(super) frames: Vec<Option<(usize, bool)>>,
    pub(super) hand: usize,
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
pub(super) struct Hand {
    pub(super) order: Vec<(usize, bool)>,
    pub(super) hand: usize,
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
pub(super) struct Counts {
    pub(super) aging: bool,
    pub(super) age: u64,
    pub(super) clock: u64,
    /// Uses, value, time of the last request.
    pub(super) entries: BTreeMap<usize, (u64, u64, u64)>,
}

impl Textbook for Counts {
    fn begin(&mut self, _request: &Request<'_>) {
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
