//! ARC as its paper tells it.

use std::collections::BTreeSet;

use moe_trace::ExpertSet;

use super::{Textbook, take, take_oldest};
use crate::request::Request;

/// ARC by the cases of its source.
#[derive(Debug, Default)]
pub(super) struct Adaptive {
    pub(super) capacity: usize,
    pub(super) t1: Vec<usize>,
    pub(super) t2: Vec<usize>,
    pub(super) b1: Vec<usize>,
    pub(super) b2: Vec<usize>,
    pub(super) p: f64,
    pub(super) from_b1: BTreeSet<usize>,
    pub(super) from_b2: BTreeSet<usize>,
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
    fn begin(&mut self, _request: &Request<'_>) {
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
