//! LRU that knows the cycle of layers.

use std::cmp::Reverse;

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::{EvictionPolicy, PoolShape};
use crate::request::Request;

/// Evicts the expert that went unused in the most runs of its own layer; of those, the one whose layer comes again
/// latest; of those, the one used longest ago.
///
/// Layers run in a cycle, so by plain recency the oldest experts are those of the layer that is about to run. State: one
/// list a layer, a counter an expert and a layer. An access costs O(1), a victim O(layers). In the pool of one layer it is
/// LRU.
///
/// Source: the idea of layered LRU, arXiv 2509.02408 (recency that takes the distance of layers into account); the rules
/// here are these.
#[derive(Clone, Debug)]
pub struct LayerLru {
    /// One list a layer.
    residents: Lists,
    layer_of: Vec<usize>,
    /// How often each layer ran.
    runs: Vec<u64>,
    /// Run of its layer in which an expert was used last.
    last_run: Vec<u64>,
    /// The layer that ran last.
    layer: usize,
}

impl LayerLru {
    /// Creates the policy for a pool.
    pub fn new(shape: PoolShape) -> LayerLru {
        LayerLru {
            residents: Lists::new(shape.universe(), shape.layers),
            layer_of: shape.layer_of_keys(),
            runs: vec![0; shape.layers],
            last_run: vec![0; shape.universe()],
            layer: 0,
        }
    }

    /// Layers until the turn of `layer` comes, a whole cycle for the one that just ran.
    fn distance(&self, layer: usize) -> usize {
        if layer > self.layer { layer - self.layer } else { layer + self.runs.len() - self.layer }
    }
}

impl EvictionPolicy for LayerLru {
    fn on_request(&mut self, request: &Request<'_>) {
        let mut running = None;
        for expert in request.wanted().iter() {
            let layer = self.layer_of[expert];
            if running.replace(layer) != Some(layer) {
                self.runs[layer] += 1;
                self.layer = layer;
            }
            self.last_run[expert] = self.runs[layer];
            self.residents.touch(expert);
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        let layer = self.layer_of[expert.index()];
        self.last_run[expert.index()] = self.runs[layer];
        self.residents.put(layer, expert.index());
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        let oldest = (0..self.runs.len()).filter_map(|layer| {
            let expert = self.residents.oldest_outside(layer, pinned)?;
            Some((Reverse(self.runs[layer] - self.last_run[expert]), Reverse(self.distance(layer)), expert))
        });
        oldest.min().map(|(_, _, expert)| ExpertKey::from_index(expert))
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate_residents(0..self.runs.len(), resident);
    }
}
