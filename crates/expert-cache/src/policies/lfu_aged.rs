//! Least frequently used, with dynamic aging.

use moe_trace::ExpertSet;

use super::heap::PriorityHeap;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Evicts the expert of the lowest value, where a request sets an expert's value to its requests since it was loaded plus
/// the value of the last victim; of those, the one whose last request is longest ago.
///
/// So an expert that was popular once does not stay for ever. State: a heap of the residents with two counters each, and
/// one more an expert. An access and a victim cost O(log resident).
///
/// Source: M. Arlitt et al., "Evaluating content management techniques for web proxy caches", ACM SIGMETRICS Performance
/// Evaluation Review 27(4), 2000 (LFU with dynamic aging).
#[derive(Clone, Debug)]
pub struct LfuAged {
    clock: u64,
    /// Value of the last victim.
    age: u64,
    counts: Vec<u64>,
    /// By value, and time of the last request.
    residents: PriorityHeap<(u64, u64)>,
    /// The victim that was named last.
    leaving: Option<usize>,
}

impl LfuAged {
    /// Creates the policy for a pool of `universe` experts and a cache of `capacity` slots.
    pub fn new(universe: usize, capacity: usize) -> LfuAged {
        LfuAged {
            clock: 0,
            age: 0,
            counts: vec![0; universe],
            residents: PriorityHeap::new(universe, capacity),
            leaving: None,
        }
    }
}

impl EvictionPolicy for LfuAged {
    fn on_request(&mut self, request: &Request<'_>) {
        self.clock += 1;
        for expert in request.wanted().iter() {
            self.counts[expert] += 1;
            self.residents.update(expert, (self.age + self.counts[expert], self.clock));
        }
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.counts[expert.index()] = 1;
        self.residents.put(expert.index(), (self.age + 1, self.clock));
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        let value = self.residents.remove(expert.index());
        if self.leaving.take() == Some(expert.index()) {
            self.age = value.map_or(self.age, |(value, _)| value);
        }
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.leaving = self.residents.lowest_outside(pinned);
        self.leaving.map(ExpertKey::from_index)
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.residents.validate(resident);
    }
}
