//! The best set that never changes.

use moe_trace::ExpertSet;

use super::list::Lists;
use crate::key::ExpertKey;
use crate::policy::EvictionPolicy;
use crate::request::Request;
use crate::requests::Requests;

/// Loads the experts that the whole future requests most, each when it is first wanted, and keeps them; all others are
/// bypassed.
///
/// No other set of fixed residents has more hits. It is built from the requests to come. State: one mark an expert, and a
/// list of residents outside of the set, which only a caller that loads unasked can bring in and which leave first. An
/// access costs nothing, a victim O(1).
#[derive(Clone, Debug)]
pub struct StaticBestSet {
    best: ExpertSet,
    others: Lists,
}

impl StaticBestSet {
    /// Creates the policy for the pool of `requests` and a cache of `capacity` slots; on a tie lower keys are chosen.
    pub fn new(requests: &Requests, capacity: usize) -> StaticBestSet {
        let mut counts = vec![0u64; requests.universe()];
        for request in 0..requests.len() {
            requests.members(request).iter().for_each(|&expert| counts[expert as usize] += 1);
        }
        let mut experts: Vec<usize> = (0..requests.universe()).collect();
        experts.sort_by_key(|&expert| std::cmp::Reverse(counts[expert]));
        let best = ExpertSet::from_members(requests.universe(), experts.into_iter().take(capacity));
        StaticBestSet { best, others: Lists::new(requests.universe(), 1) }
    }
}

impl EvictionPolicy for StaticBestSet {
    fn on_request(&mut self, _request: &Request<'_>) {}

    fn should_admit(&mut self, expert: ExpertKey) -> bool {
        self.best.contains(expert.index())
    }

    fn on_insert(&mut self, expert: ExpertKey) {
        if !self.best.contains(expert.index()) {
            self.others.put(0, expert.index());
        }
    }

    fn on_evict(&mut self, expert: ExpertKey) {
        self.others.remove(expert.index());
    }

    fn victim(&mut self, _incoming: ExpertKey, pinned: &ExpertSet) -> Option<ExpertKey> {
        self.others.oldest_outside(0, pinned).map(ExpertKey::from_index)
    }

    fn universe(&self) -> Option<usize> {
        Some(self.others.universe())
    }

    #[cfg(test)]
    fn validate(&self, resident: &ExpertSet) {
        self.others.validate();
        assert!(resident.iter().all(|expert| self.best.contains(expert) || self.others.contains(expert)));
    }
}
