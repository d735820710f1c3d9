//! Layer-aware LRU, judged anew for every resident.

use std::collections::BTreeMap;

use moe_trace::ExpertSet;

use super::{Textbook, take};
use crate::policy::PoolShape;
use crate::request::Request;

/// Layer-aware LRU: every resident is judged by its age, its layer and its place in the order of use.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) shape: PoolShape,
    pub(super) order: Vec<usize>,
    pub(super) runs: Vec<usize>,
    pub(super) last_run: BTreeMap<usize, usize>,
    /// The layer that runs, and whether the running request has said so.
    pub(super) running: (usize, bool),
}

impl Layers {
    pub(super) fn new(shape: PoolShape) -> Layers {
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
    fn begin(&mut self, _request: &Request<'_>) {
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
