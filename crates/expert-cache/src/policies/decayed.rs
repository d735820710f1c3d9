//! Eviction by the least decayed score.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroUsize;

use moe_trace::ExpertSet;

use super::decayed_scores::{DecayedScores, Score};
use super::heap::PriorityHeap;
use crate::key::ExpertKey;
use crate::policy::{EvictionPolicy, PoolShape};
use crate::request::Request;

/// A policy that evicts the expert with the least score, a sum over its requests in which old requests count less.
///
/// [`Lfru`](crate::Lfru) and [`RouterMass`](crate::RouterMass) differ in the contribution of a request only.
///
/// # Formula
/// A request of age `a` contributes `(1 + 1 / m)^-a` times its value, where `a` is in requests to the pool and `m` is the
/// memory in requests: `memory` tokens times the layers of the pool. So a contribution fades to about `1 / e` in `memory`
/// tokens. Scores survive eviction.
///
/// # Complexity
/// O(log resident) per access and per victim. The state is a score per expert and a heap of the residents.
#[derive(Clone, Debug)]
pub struct Decayed<S> {
    scores: DecayedScores,
    residents: PriorityHeap<Score>,
    contribution: PhantomData<S>,
}

/// A value that a request adds to the score of each of its experts.
pub trait Contribution: fmt::Debug + Send {
    /// The name of the policy in errors.
    const POLICY: &'static str;
    /// Whether the value depends on router weights.
    const READS_MASS: bool;

    /// Returns the value of a request for one of its experts.
    fn of(request: &Request<'_>, expert: ExpertKey) -> f64;
}

impl<S: Contribution> Decayed<S> {
    /// Creates the policy for a cache of `capacity` slots over a pool, with a memory of `memory` tokens.
    pub fn new(shape: PoolShape, capacity: usize, memory: NonZeroUsize) -> Decayed<S> {
        Decayed {
            scores: DecayedScores::new(shape.universe(), shape.layers, memory),
            residents: PriorityHeap::new(shape.universe(), capacity),
            contribution: PhantomData,
        }
    }
}

impl<S: Contribution> EvictionPolicy for Decayed<S> {
    fn on_request(&mut self, request: &Request<'_>) {
        if self.scores.on_request() {
            self.residents.update_all(|expert| self.scores.score(expert));
        }
        for expert in request.wanted().iter() {
            self.scores.add(expert, S::of(request, ExpertKey::from_index(expert)));
            self.residents.update(expert, self.scores.score(expert));
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.residents.put(expert.index(), self.scores.score(expert.index()));
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.residents.lowest_outside(pinned).map(ExpertKey::from_index)
    }

    fn name(&self) -> &'static str {
        S::POLICY
    }

    fn needs_router_weights(&self) -> bool {
        S::READS_MASS
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate(resident);
    }
}
