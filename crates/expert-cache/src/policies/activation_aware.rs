//! Experts as past sequences used them.

use std::num::NonZeroUsize;

use moe_trace::ExpertSet;

use super::heap::PriorityHeap;
use crate::key::ExpertKey;
use crate::policy::{EvictionPolicy, PoolShape};
use crate::request::Request;

/// Evicts the expert that the running sequence is expected to use least: its uses so far, and those in the most similar of
/// the last `sequences` sequences, weighted as if that one had been the running sequence for 16 tokens; of those, the one
/// whose last request is longest ago.
///
/// Similarity is the cosine between the uses of all experts, looked at once a token; of equally similar sequences, and so
/// while nothing of the running one is known, the last serves. State: a count an expert for the running and each
/// remembered sequence, and a heap of the residents. An access costs O(sequences + log resident), a token at which another
/// sequence becomes the most similar O(resident), a victim O(log resident), the end of a sequence O(pool).
///
/// Source: the sequence-level expert activation matrices of MoE-Infinity, arXiv 2401.14361; without its preference for
/// early layers, which serves its prefetching.
#[derive(Clone, Debug)]
pub struct ActivationAware {
    sequences: usize,
    layers: usize,
    /// `[universe x sequences]`: uses a token in each remembered sequence.
    rates: Vec<f32>,
    /// Length of each remembered sequence's vector of rates; 0 for none.
    norms: Vec<f32>,
    /// Where the next sequence is written.
    newest: usize,
    /// Products of each remembered sequence and the running one.
    products: Vec<f32>,
    /// The remembered sequence that is most similar.
    nearest: usize,
    counts: Vec<u32>,
    requests: usize,
    clock: u64,
    last_use: Vec<u64>,
    /// By expected uses, and time of the last request.
    residents: PriorityHeap<(u32, u64)>,
}

const PRIOR_TOKENS: f32 = 16.0;

impl ActivationAware {
    /// Creates the policy for a cache of `capacity` slots over a pool, remembering `sequences` sequences.
    pub fn new(shape: PoolShape, capacity: usize, sequences: NonZeroUsize) -> ActivationAware {
        let sequences = sequences.get();
        ActivationAware {
            sequences,
            layers: shape.layers,
            rates: vec![0.0; shape.universe() * sequences],
            norms: vec![0.0; sequences],
            newest: 0,
            products: vec![0.0; sequences],
            nearest: 0,
            counts: vec![0; shape.universe()],
            requests: 0,
            clock: 0,
            last_use: vec![0; shape.universe()],
            residents: PriorityHeap::new(shape.universe(), capacity),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of one sequence are below 2^24")]
    fn priority(&self, expert: usize) -> (u32, u64) {
        let expected = self.counts[expert] as f32 + PRIOR_TOKENS * self.rates[expert * self.sequences + self.nearest];
        // Not negative, so the bits are in the order of the values.
        (expected.to_bits(), self.last_use[expert])
    }

    fn look_for_nearest(&mut self) {
        let cosine = |&sequence: &usize| match self.norms[sequence] {
            norm if norm > 0.0 => self.products[sequence] / norm,
            _ => 0.0,
        };
        // From the oldest to the last, which is taken of equal ones.
        let by_age = (self.newest..self.sequences).chain(0..self.newest);
        let nearest = by_age.max_by(|a, b| cosine(a).total_cmp(&cosine(b)));
        self.settle_on(nearest.unwrap_or(0));
    }

    fn settle_on(&mut self, nearest: usize) {
        if nearest != self.nearest {
            self.nearest = nearest;
            self.reprioritize();
        }
    }

    fn reprioritize(&mut self) {
        let mut residents = std::mem::replace(&mut self.residents, PriorityHeap::new(0, 0));
        residents.update_all(|expert| self.priority(expert));
        self.residents = residents;
    }
}

impl EvictionPolicy for ActivationAware {
    fn on_request(&mut self, request: &Request<'_>) {
        self.clock += 1;
        for expert in request.wanted().iter() {
            self.counts[expert] += 1;
            self.last_use[expert] = self.clock;
            let rates = &self.rates[expert * self.sequences..][..self.sequences];
            self.products.iter_mut().zip(rates).for_each(|(product, rate)| *product += rate);
            let priority = self.priority(expert);
            self.residents.update(expert, priority);
        }
        self.requests += 1;
        if self.requests.is_multiple_of(self.layers) {
            self.look_for_nearest();
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.residents.put(expert.index(), self.priority(expert.index()));
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.residents.lowest_outside(pinned).map(ExpertKey::from_index)
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of one sequence are below 2^24")]
    fn sequence_end(&mut self) {
        if self.requests == 0 {
            return;
        }
        let tokens = self.requests as f32 / self.layers as f32;
        let mut square = 0.0;
        for (expert, count) in self.counts.iter_mut().enumerate() {
            let rate = std::mem::take(count) as f32 / tokens;
            self.rates[expert * self.sequences + self.newest] = rate;
            square += rate * rate;
        }
        self.norms[self.newest] = square.sqrt();
        self.products.fill(0.0);
        self.requests = 0;
        self.nearest = self.newest;
        self.newest = (self.newest + 1) % self.sequences;
        self.reprioritize();
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate(resident);
        assert!(resident.iter().all(|expert| self.residents.priority(expert) == Some(self.priority(expert))));
    }
}
