//! LIRS: reuse distance instead of recency.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;

/// Keeps the experts whose last two uses were close together (LIR) and cycles all others (HIR) through a few slots.
///
/// The stack holds the LIR experts and the HIR experts used since the oldest of them, resident or not, by recency; an
/// HIR expert that is used while it is in the stack becomes LIR in place of the LIR expert at the bottom. HIR experts have
/// one in a hundred of the slots, at least one. The stack has at most twice as many entries as there are slots; the expert
/// that was evicted first leaves it first. If all HIR experts are pinned, the victim is the lowest LIR expert of the stack.
///
/// # Steps
/// Numbers in the code are the cases of the paper's section 3.3, "A Detailed Description", where S is the stack and Q the
/// queue of resident HIR experts:
///
/// 1. An LIR expert is used.
/// 2. A resident HIR expert is used, (a) while it is in S, or (b) after it left S.
/// 3. A non-resident HIR expert is used, (a) while it is in S, or (b) otherwise. Its load comes after the use, so an
///    expert of case 3a waits in the list `RETURNING` in between.
///
/// Invariants: the bottom of S is LIR, and every expert of S that is not LIR is in one of the three queues.
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

    /// Changes the status of an expert to LIR: cases 2a and 3a, and the first experts of an empty cache.
    fn make_lir(&mut self, expert: usize) {
        // The expert leaves Q and moves to the top of S.
        self.queues.remove(expert);
        self.stack.put(0, expert);
        self.is_lir[expert] = true;
        self.lir += 1;
        self.prune();
        // The LIR expert at the bottom of S moves to the end of Q as HIR, and S is pruned: the number of LIR experts stays.
        if self.lir > self.lir_slots
            && let Some(bottom) = self.stack.oldest(0)
        {
            self.demote(bottom);
            self.queues.put(RESIDENT, bottom);
        }
    }

    /// Changes the status of an expert from LIR to HIR, removes it from the stack, and prunes the stack.
    fn demote(&mut self, expert: usize) {
        self.is_lir[expert] = false;
        self.lir -= 1;
        self.stack.remove(expert);
        self.prune();
    }

    /// Prunes the stack (section 3.3): removes HIR experts from its bottom until an LIR expert is there.
    ///
    /// A non-resident expert is remembered only as long as it is in the stack, so it leaves its queue as well.
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

    /// Bounds the stack, which the paper lets grow: forgets the experts that were evicted first.
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
    fn on_request(&mut self, request: &Request<'_>) {
        // An expert of the request before that was not loaded is non-resident still.
        while let Some(bypassed) = self.queues.oldest(RETURNING) {
            self.queues.put(EVICTED, bypassed);
        }
        for expert in request.wanted().iter() {
            if self.is_lir[expert] {
                // 1. To the top of S. If it was at the bottom, S is pruned.
                self.stack.touch(expert);
                self.prune();
                continue;
            }
            match self.queues.list_of(expert) {
                // 2a. In S: its last two uses are closer together than those of the LIR expert at the bottom.
                Some(RESIDENT) if self.stack.contains(expert) && self.lir_slots > 0 => self.make_lir(expert),
                // 2b. Not in S: HIR still, to the top of S and the end of Q.
                Some(RESIDENT) => {
                    self.stack.put(0, expert);
                    self.queues.touch(expert);
                }
                // 3a. To the top of S; `on_insert` changes the status when the expert is loaded.
                Some(EVICTED) => {
                    self.stack.touch(expert);
                    self.queues.put(RETURNING, expert);
                }
                // 3b. No history; `on_insert` does all.
                _ => {}
            }
        }
        self.limit_stack();
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        let expert = expert.index();
        let returns = self.queues.list_of(expert) == Some(RETURNING);
        // 3a. It was in S when it was used: LIR. So is every expert while LIR slots are free (the paper's start).
        if self.lir < self.lir_slots || (returns && self.lir_slots > 0) {
            self.make_lir(expert);
        } else {
            // 3b. HIR, on the top of S and at the end of Q.
            self.stack.put(0, expert);
            self.queues.put(RESIDENT, expert);
        }
        self.limit_stack();
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        let expert = expert.index();
        let is_evicted = self.leaving.take() == Some(expert);
        if self.is_lir[expert] {
            // The paper never evicts an LIR expert; here all of Q was pinned, or a load failed.
            self.demote(expert);
        } else if is_evicted && self.stack.contains(expert) {
            // 3. The evicted expert becomes non-resident and keeps its place in S.
            self.queues.put(EVICTED, expert);
        } else {
            self.queues.remove(expert);
            self.stack.remove(expert);
        }
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        // 3. The expert at the front of Q.
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
