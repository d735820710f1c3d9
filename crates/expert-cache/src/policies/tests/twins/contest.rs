//! W-TinyLFU with a window, two segments and a record of all requests.

use moe_trace::ExpertSet;

use super::{Textbook, take};
use crate::request::Request;

/// W-TinyLFU: what was requested lately is counted anew for every contest.
#[derive(Debug, Default)]
pub(super) struct Contest {
    pub(super) capacity: usize,
    pub(super) window: Vec<usize>,
    pub(super) probation: Vec<usize>,
    pub(super) protected: Vec<usize>,
    /// Every expert that was requested, one after the other.
    pub(super) requested: Vec<usize>,
    /// Whether somebody left for the expert that comes next; otherwise it has a free slot, and nobody has to lose.
    pub(super) contested: bool,
}

impl Contest {
    fn window_slots(&self) -> usize {
        (self.capacity / 100).max(1)
    }

    fn protected_slots(&self) -> usize {
        (self.capacity - self.window_slots()) * 4 / 5
    }

    /// Requests of an expert, lately. Halving takes back half of the ten requests a slot, so that the next one comes
    /// after five more.
    fn count(&self, expert: usize) -> u32 {
        let mut count = 0;
        for (number, &requested) in (1..).zip(&self.requested) {
            if requested == expert && count < 15 {
                count += 1;
            }
            if number >= 10 * self.capacity && number % (5 * self.capacity) == 0 {
                count /= 2;
            }
        }
        count
    }
}

impl Textbook for Contest {
    fn begin(&mut self, request: &Request<'_>) {
        self.requested.extend(request.wanted().iter());
    }

    fn is_resident(&self, expert: usize) -> bool {
        [&self.window, &self.probation, &self.protected].into_iter().any(|list| list.contains(&expert))
    }

    fn hit(&mut self, expert: usize) {
        if take(&mut self.window, expert) {
            self.window.push(expert);
            return;
        }
        take(&mut self.probation, expert);
        take(&mut self.protected, expert);
        self.protected.push(expert);
        if self.protected.len() > self.protected_slots() {
            self.probation.push(self.protected.remove(0));
        }
    }

    fn evict(&mut self, _incoming: usize, pinned: &ExpertSet) -> Option<usize> {
        let oldest = |list: &[usize]| list.iter().copied().find(|&expert| !pinned.contains(expert));
        let candidate = oldest(&self.window);
        let defender = oldest(&self.probation).or_else(|| oldest(&self.protected));
        let mut victim = candidate.or(defender)?;
        if let (Some(candidate), Some(defender)) = (candidate, defender)
            && self.count(candidate) > self.count(defender)
        {
            take(&mut self.window, candidate);
            self.probation.push(candidate);
            victim = defender;
        }
        for list in [&mut self.window, &mut self.probation, &mut self.protected] {
            take(list, victim);
        }
        self.contested = true;
        Some(victim)
    }

    fn insert(&mut self, expert: usize) {
        self.window.push(expert);
        if !std::mem::take(&mut self.contested) && self.window.len() > self.window_slots() {
            self.probation.push(self.window.remove(0));
        }
    }
}
