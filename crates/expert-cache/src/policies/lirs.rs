//! LIRS: reuse distance instead of recency.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::{EvictionPolicy, ExpertKey, Request};

/// Keeps the experts whose last two uses were close together (LIR) and cycles all others (HIR) through a few slots.
///
/// The stack holds the LIR experts and the HIR experts used since the oldest of them, resident or not, by recency; an
/// HIR expert that is used while it is in the stack becomes LIR in place of the LIR expert at the bottom. HIR experts have
/// one in a hundred of the slots, at least one. The stack has at most twice as many entries as there are slots; the expert
/// that was evicted first leaves it first. If all HIR experts are pinned, the victim is the lowest LIR expert of the stack.
///
/// State: the stack, the queue of resident HIR experts, the queue of non-resident ones, and a status an expert. An access
/// and a victim cost O(1) amortized.
///
/// Source: S. Jiang, X. Zhang, "LIRS: an efficient low inter-reference recency set replacement policy to improve buffer
/// cache performance", SIGMETRICS 2002.
#[derive(Clone, Debug)]
pub struct Lirs {
    stack: Lists,
    queues: Lists,
    is_lir: Vec<bool>,
    lir: usize,
    lir_slots: usize,
    stack_limit: usize,
    /// The victim that was named last.
    leaving: Option<usize>,
}

/// Resident HIR experts (Q).
const RESIDENT: usize = 0;
/// HIR experts that are in the stack only, by time of eviction.
const EVICTED: usize = 1;
/// Wanted now, and evicted until now.
const RETURNING: usize = 2;

impl Lirs {
    /// Creates the policy for a pool of `universe` experts and a cache of `capacity` slots.
    pub fn new(universe: usize, capacity: usize) -> Lirs {
        Lirs {
            stack: Lists::new(universe, 1),
            queues: Lists::new(universe, 3),
            is_lir: vec![false; universe],
            lir: 0,
            lir_slots: capacity - (capacity / 100).max(1),
            stack_limit: 2 * capacity,
            leaving: None,
        }
    }

    fn make_lir(&mut self, expert: usize) {
        self.queues.remove(expert);
        self.stack.put(0, expert);
        self.is_lir[expert] = true;
        self.lir += 1;
        self.prune();
        if self.lir > self.lir_slots
            && let Some(bottom) = self.stack.oldest(0)
        {
            self.demote(bottom);
            self.queues.put(RESIDENT, bottom);
        }
    }

    /// Takes the LIR status, and the place in the stack.
    fn demote(&mut self, expert: usize) {
        self.is_lir[expert] = false;
        self.lir -= 1;
        self.stack.remove(expert);
        self.prune();
    }

    /// Removes from the bottom of the stack what is not LIR.
    fn prune(&mut self) {
        while let Some(bottom) = self.stack.oldest(0)
            && !self.is_lir[bottom]
        {
            self.stack.remove(bottom);
            if self.queues.list_of(bottom) != Some(RESIDENT) {
                self.queues.remove(bottom);
            }
        }
    }

    fn limit_stack(&mut self) {
        while self.stack.len(0) > self.stack_limit
            && let Some(evicted) = self.queues.oldest(EVICTED)
        {
            self.queues.remove(evicted);
            self.stack.remove(evicted);
        }
    }
}

impl EvictionPolicy for Lirs {
    fn step(&mut self, request: &Request<'_>) {
        while let Some(bypassed) = self.queues.oldest(RETURNING) {
            self.queues.put(EVICTED, bypassed);
        }
        for expert in request.wanted().iter() {
            if self.is_lir[expert] {
                self.stack.touch(expert);
                self.prune();
                continue;
            }
            match self.queues.list_of(expert) {
                Some(RESIDENT) if self.stack.contains(expert) && self.lir_slots > 0 => self.make_lir(expert),
                Some(RESIDENT) => {
                    self.stack.put(0, expert);
                    self.queues.touch(expert);
                }
                Some(EVICTED) => {
                    self.stack.touch(expert);
                    self.queues.put(RETURNING, expert);
                }
                _ => {}
            }
        }
        self.limit_stack();
    }

    fn admit(&mut self, expert: ExpertKey) {
        let expert = expert.index();
        let returns = self.queues.list_of(expert) == Some(RETURNING);
        if self.lir < self.lir_slots || (returns && self.lir_slots > 0) {
            self.make_lir(expert);
        } else {
            self.stack.put(0, expert);
            self.queues.put(RESIDENT, expert);
        }
        self.limit_stack();
    }

    fn forget(&mut self, expert: ExpertKey) {
        let expert = expert.index();
        let is_evicted = self.leaving.take() == Some(expert);
        if self.is_lir[expert] {
            self.demote(expert);
        } else if is_evicted && self.stack.contains(expert) {
            self.queues.put(EVICTED, expert);
        } else {
            self.queues.remove(expert);
            self.stack.remove(expert);
        }
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        let lowest_lir = || self.stack.iter(0).find(|&expert| self.is_lir[expert] && !pinned.contains(expert));
        self.leaving = self.queues.oldest_outside(RESIDENT, pinned).or_else(lowest_lir);
        self.leaving.map(ExpertKey::from_index)
    }

    fn universe(&self) -> Option<usize> {
        Some(self.stack.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.stack.validate();
        self.queues.validate();
        let is_resident = |expert: usize| self.is_lir[expert] || self.queues.list_of(expert) == Some(RESIDENT);
        let residents = (0..self.is_lir.len()).filter(|&expert| is_resident(expert));
        assert_eq!(residents.collect::<Vec<_>>(), resident.iter().collect::<Vec<_>>());
        let lir: Vec<usize> = (0..self.is_lir.len()).filter(|&expert| self.is_lir[expert]).collect();
        assert_eq!(self.lir, lir.len());
        assert!(self.lir <= self.lir_slots);
        assert!(lir.iter().all(|&expert| self.stack.contains(expert) && !self.queues.contains(expert)));
        assert!(
            [EVICTED, RETURNING]
                .into_iter()
                .all(|list| self.queues.iter(list).all(|expert| self.stack.contains(expert)))
        );
        assert!(self.stack.iter(0).all(|expert| self.is_lir[expert] || self.queues.contains(expert)));
        assert!(self.queues.len(EVICTED) <= self.stack_limit);
    }
}
