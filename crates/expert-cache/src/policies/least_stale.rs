//! What the running token has passed over goes first.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::{EvictionPolicy, PoolShape};
use crate::request::Request;

/// Evicts first, and in the order in which they became stale, the experts that are stale: their layer has run since their
/// last use, without them. Of those that became stale together, the one used longest ago leaves first. Only if nobody is
/// stale it evicts fresh ones, of the layer whose turn comes again latest, the one used longest ago.
///
/// A request for nothing runs no layer. While layers run in a cycle, whoever is stale is older than all that is fresh,
/// so it differs from LRU only while nobody is stale, that is, where the pool holds less than one token wants: there LRU
/// evicts experts of the layer that is about to run. State: one list a layer and the queue of the stale. An access costs
/// O(1) amortized, a victim O(1), or O(layers) if nobody is stale. In the pool of one layer it is LRU.
///
/// Source: the idea of Least-Stale, arXiv 2602.03921 (staleness against the running forward pass); the rules here are
/// these.
#[derive(Clone, Debug)]
pub struct LeastStale {
    /// One list of fresh residents a layer, and the stale ones.
    residents: Lists,
    shape: PoolShape,
    layer_of: Vec<usize>,
    /// The layer that ran last.
    layer: usize,
}

impl LeastStale {
    /// Creates the policy for a pool.
    pub fn new(shape: PoolShape) -> LeastStale {
        LeastStale {
            residents: Lists::new(shape.universe(), shape.layers + 1),
            shape,
            layer_of: shape.layer_of_keys(),
            layer: 0,
        }
    }

    fn stale(&self) -> usize {
        self.shape.layers
    }

    /// The layer runs: what it used last time is stale unless it is wanted again.
    fn run(&mut self, layer: usize, wanted: &ExpertSet) {
        self.layer = layer;
        let mut next = self.residents.oldest(layer);
        while let Some(expert) = next {
            next = self.residents.newer(expert);
            if !wanted.contains(expert) {
                self.residents.put(self.stale(), expert);
            }
        }
    }
}

impl EvictionPolicy for LeastStale {
    fn on_request(&mut self, request: &Request<'_>) {
        let mut running = None;
        for expert in request.wanted().iter() {
            let layer = self.layer_of[expert];
            if running.replace(layer) != Some(layer) {
                self.run(layer, request.wanted());
            }
            if self.residents.contains(expert) {
                self.residents.put(layer, expert);
            }
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.residents.put(self.layer_of[expert.index()], expert.index());
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        let latest_first = (0..=self.layer).rev().chain((self.layer + 1..self.shape.layers).rev());
        let mut lists = std::iter::once(self.stale()).chain(latest_first);
        lists.find_map(|list| self.residents.oldest_outside(list, pinned)).map(ExpertKey::from_index)
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate_residents(0..self.shape.layers + 1, resident);
    }
}
