//! What was tried, and what it says of a target.

use serde::Serialize;

use super::{Candidate, Target};
use crate::{CacheError, PhaseSpeed, Result};

/// Speeds of all setups that an [`Advisor`](super::Advisor) tried.
#[derive(Clone, Debug, Serialize)]
pub struct Survey {
    /// In the order of layouts, policies, prefetchers and slots.
    pub candidates: Vec<Candidate>,
    /// Speed if every expert were in a slot before the first token.
    pub all_resident: PhaseSpeed,
    /// Bytes of all experts.
    pub all_bytes: u64,
}

/// The answer to a target; candidates by their place in the survey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// The smallest cache that meets the target; where bytes are the target, the fastest within them.
    Met {
        /// The cache.
        best: usize,
    },
    /// The target could be met by who knows the future, but no policy and prefetcher that were tried meet it.
    PolicyFailure {
        /// The fastest that does without the future.
        best: Option<usize>,
        /// The smallest that knows the future and meets the target.
        bound: usize,
    },
    /// Not even who knows the future meets the target: the tokens want too many different experts, too soon after each
    /// other, for so small a cache or so slow a link.
    WorkingSet {
        /// The fastest that does without the future.
        best: Option<usize>,
        /// The fastest that knows it.
        bound: Option<usize>,
    },
    /// Not even all experts in slots meet the target: computing alone takes longer.
    Compute,
}

impl Survey {
    /// The answer to a target, with no more than `budget` bytes of slots.
    ///
    /// Of two caches of equal size the faster is better, of two that are equally fast the one that comes first.
    ///
    /// # Errors
    /// [`CacheError::Figure`] for a target that is not above 0; [`CacheError::NoCandidate`] if nothing was tried in so few
    /// bytes; for a [`Target::Bytes`] also if nothing without the future was, or [`CacheError::NoChoice`] if everything that
    /// was tried knows the future.
    pub fn answer(&self, target: Target, budget: Option<u64>) -> Result<Verdict> {
        target.check()?;
        let budget = match target {
            Target::Bytes(bytes) => budget.unwrap_or(u64::MAX).min(bytes),
            _ => budget.unwrap_or(u64::MAX),
        };
        let within = |online: bool| {
            let candidates = self.candidates.iter().enumerate();
            candidates.filter(move |(_, one)| one.setup.is_online() == online && one.setup.bytes <= budget)
        };
        let slower = |one: &Candidate| one.speed.decode.mean_seconds();
        let fastest = |online| within(online).min_by(|a, b| slower(a.1).total_cmp(&slower(b.1))).map(|(at, _)| at);
        let smallest = |online| {
            let meets = within(online).filter(|(_, one)| target.is_met(&one.speed.decode));
            let size_then_speed =
                |a: &Candidate, b: &Candidate| a.setup.bytes.cmp(&b.setup.bytes).then(slower(a).total_cmp(&slower(b)));
            meets.min_by(|a, b| size_then_speed(a.1, b.1)).map(|(at, _)| at)
        };
        let least = |online: &[bool]| {
            let counted = self.candidates.iter().filter(|one| online.contains(&one.setup.is_online()));
            counted.map(|one| one.setup.bytes).min()
        };
        let too_small = |least: Option<u64>| match least {
            Some(least) => CacheError::NoCandidate { bytes: budget, least },
            None => CacheError::NoChoice { what: "setup without the future" },
        };
        if let Target::Bytes(_) = target {
            let best = fastest(true).ok_or_else(|| too_small(least(&[true])))?;
            return Ok(Verdict::Met { best });
        }
        if least(&[true, false]).is_none_or(|least| least > budget) {
            return Err(too_small(least(&[true, false])));
        }
        Ok(if let Some(best) = smallest(true) {
            Verdict::Met { best }
        } else if let Some(bound) = smallest(false) {
            Verdict::PolicyFailure { best: fastest(true), bound }
        } else if target.is_met(&self.all_resident) {
            Verdict::WorkingSet { best: fastest(true), bound: fastest(false) }
        } else {
            Verdict::Compute
        })
    }
}
