//! The optimum where a miss may be served without a load.

use std::cmp::Reverse;

use moe_trace::ExpertSet;

use super::heap::PriorityHeap;
use super::next_use::{NEVER, NextUse};
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;
use crate::requests::Requests;

/// Of the experts that are resident or wanted, keeps those whose next requests are nearest, except that none leaves
/// while it is served; misses beyond these, and experts never wanted again, are bypassed. Of experts that are wanted next
/// together, the one wanted sooner after that counts as nearer. No other choice has more hits.
///
/// It must be stepped through exactly the requests it was built from. State: a list of positions an expert, 4 bytes a
/// member of every request, and a heap of the residents. A request costs O(wanted * log(wanted * resident)).
///
/// Source: Belady's rule with bypassing as in S. McFarling, "Cache replacement with dynamic exclusion", ISCA 1992 (there
/// for direct-mapped caches), for sets that are wanted together.
#[derive(Clone, Debug)]
pub struct BeladyBypass {
    next_use: NextUse,
    capacity: usize,
    residents: PriorityHeap<Reverse<u32>>,
    /// Residents that this request may evict, farthest first; they are not in the heap.
    leaving: Vec<usize>,
    /// What this request should load, by next use.
    loading: Vec<(u32, usize)>,
}

impl BeladyBypass {
    /// Creates the policy for the pool of `requests` and a cache of `capacity` slots.
    ///
    /// # Panics
    /// If the requests have `u32::MAX` members or more.
    pub fn new(requests: &Requests, capacity: usize) -> BeladyBypass {
        BeladyBypass {
            next_use: NextUse::ranked(requests),
            capacity,
            residents: PriorityHeap::new(requests.universe(), capacity),
            leaving: Vec::with_capacity(capacity),
            loading: Vec::with_capacity(requests.universe()),
        }
    }

    fn stay(&mut self) {
        while let Some(expert) = self.leaving.pop() {
            self.residents.put(expert, Reverse(self.next_use.of(expert)));
        }
    }
}

impl EvictionPolicy for BeladyBypass {
    fn on_request(&mut self, request: &Request<'_>) {
        self.stay();
        self.next_use.on_request(request.wanted());
        self.loading.clear();
        for expert in request.wanted().iter() {
            let next = self.next_use.of(expert);
            if self.residents.contains(expert) {
                self.residents.update(expert, Reverse(next));
            } else if next != NEVER {
                self.loading.push((next, expert));
            }
        }
        self.loading.sort_unstable();
        let free = self.capacity.saturating_sub(self.residents.len());
        let mut loads = self.loading.len().min(free);
        while loads < self.loading.len()
            && let Some(farthest) = self.residents.lowest_outside(request.wanted())
            && self.next_use.of(farthest) > self.loading[loads].0
        {
            self.residents.remove(farthest);
            self.leaving.push(farthest);
            loads += 1;
        }
        self.loading.truncate(loads);
    }

    fn should_admit(&mut self, expert: ExpertKey) -> bool {
        self.loading.iter().any(|&(_, wanted)| wanted == expert.index())
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        self.residents.put(expert.index(), Reverse(self.next_use.of(expert.index())));
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.leaving.retain(|&leaving| leaving != expert.index());
        self.residents.remove(expert.index());
    }

    fn victim(&mut self, incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        let planned = self.leaving.iter().copied().find(|&expert| !pinned.contains(expert));
        let unplanned = || {
            let farthest = self.residents.lowest_outside(pinned)?;
            (self.next_use.of(farthest) > self.next_use.of(incoming.index())).then_some(farthest)
        };
        planned.or_else(unplanned).map(ExpertKey::from_index)
    }

    fn universe(&self) -> Option<usize> {
        Some(self.residents.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        let mut staying = resident.clone();
        assert!(self.leaving.iter().all(|&expert| staying.remove(expert)));
        self.residents.validate(&staying);
    }
}
