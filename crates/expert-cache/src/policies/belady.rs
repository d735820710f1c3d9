//! The optimum where every miss must be loaded and every request fits.

use std::cmp::Reverse;

use moe_trace::ExpertSet;

use crate::policy::lowest_priority;
use crate::{EvictionPolicy, ExpertKey, Request, Requests};

/// Evicts the expert whose next request is farthest away. If every request fits into the cache, no other choice of
/// victims needs fewer loads.
///
/// It must be stepped through exactly the requests it was built from. State: a list of positions an expert, 4 bytes a
/// member of every request. A victim costs O(universe / 64 + resident).
///
/// Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2),
/// 1966.
#[derive(Clone, Debug)]
pub struct Belady {
    /// Requests of each expert in ascending order, one expert after the other.
    positions: Vec<u32>,
    /// The next request of each expert among its positions, and the end of its positions.
    next: Vec<(usize, usize)>,
    resident: ExpertSet,
}

impl Belady {
    /// Creates the policy for the pool of `requests`.
    ///
    /// # Panics
    /// If there are more than `u32::MAX` requests.
    pub fn new(requests: &Requests) -> Belady {
        let mut ends = vec![0usize; requests.universe() + 1];
        let members =
            || (0..requests.len()).flat_map(|request| requests.members(request).iter().map(move |&e| (request, e)));
        for (_, expert) in members() {
            ends[expert as usize + 1] += 1;
        }
        for expert in 1..ends.len() {
            ends[expert] += ends[expert - 1];
        }
        let next = ends.windows(2).map(|window| (window[0], window[1])).collect();
        let mut positions = vec![0; ends[requests.universe()]];
        for (request, expert) in members() {
            let place = &mut ends[expert as usize];
            positions[*place] = u32::try_from(request).expect("at most u32::MAX requests");
            *place += 1;
        }
        Belady { positions, next, resident: ExpertSet::new(requests.universe()) }
    }

    /// Position of the next request after the current one; none if there is none.
    fn next_use(&self, expert: usize) -> Option<u32> {
        let (next, end) = self.next[expert];
        self.positions[next..end].first().copied()
    }
}

impl EvictionPolicy for Belady {
    fn step(&mut self, request: &Request<'_>) {
        for expert in request.wanted().iter() {
            let (next, end) = &mut self.next[expert];
            *next = (*next + 1).min(*end);
        }
    }

    fn admit(&mut self, expert: ExpertKey) {
        self.resident.insert(expert.index());
    }

    fn forget(&mut self, expert: ExpertKey) {
        self.resident.remove(expert.index());
    }

    fn victim(&mut self, pinned: &ExpertSet) -> Option<ExpertKey> {
        // No next use is farther than any.
        lowest_priority(&self.resident, pinned, |expert| Reverse(self.next_use(expert).unwrap_or(u32::MAX)))
    }
}
