//! LIRS as its paper tells it.

use std::collections::BTreeSet;

use moe_trace::ExpertSet;

use super::{Textbook, take, take_oldest};
use crate::request::Request;

/// LIRS.
#[derive(Debug, Default)]
pub(super) struct Distances {
    pub(super) capacity: usize,
    pub(super) stack: Vec<usize>,
    pub(super) lir: BTreeSet<usize>,
    pub(super) queue: Vec<usize>,
    /// Evicted experts that are in the stack, in order of eviction.
    pub(super) evicted: Vec<usize>,
    /// Wanted now, and evicted until now.
    pub(super) returning: Vec<usize>,
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
    fn begin(&mut self, _request: &Request<'_>) {
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
