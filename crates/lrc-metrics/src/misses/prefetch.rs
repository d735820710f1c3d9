//! What prefetching does to misses.

use serde::{Deserialize, Serialize};

use super::MissDecomposition;
use crate::error::{MetricError, Result};

/// Accesses of a run with prefetching beside the same run without.
///
/// Prefetching covers misses by loading experts ahead, and pollutes the cache: what it evicts may be wanted again. Both
/// are seen access by access, when the same requests run through the same policy and capacity twice:
///
/// ```text
///               without: hit     without: miss
/// with: hit     kept             covered
/// with: miss    polluted         left
/// ```
///
/// ```
/// use lrc_metrics::PrefetchEffect;
/// let mut effect = PrefetchEffect::default();
/// for (hit_without, hit_with) in [(true, true), (false, true), (true, false), (false, true), (false, false)] {
///     effect.observe(hit_without, hit_with);
/// }
/// // Of five accesses two misses were covered and one hit was lost.
/// assert_eq!((effect.coverage(), effect.pollution()), (0.4, 0.2));
/// // The same from the counts of both runs, if the simulator counts hits on what was prefetched.
/// assert_eq!(PrefetchEffect::from_counts(5, 3, 2, 2)?, effect);
/// # Ok::<(), lrc_metrics::MetricError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PrefetchState")]
pub struct PrefetchEffect {
    accesses: u64,
    misses_without: u64,
    covered: u64,
    polluted: u64,
}

/// What is read before it is checked.
#[derive(Deserialize)]
struct PrefetchState {
    accesses: u64,
    misses_without: u64,
    covered: u64,
    polluted: u64,
}

impl TryFrom<PrefetchState> for PrefetchEffect {
    type Error = MetricError;

    fn try_from(state: PrefetchState) -> Result<PrefetchEffect> {
        let PrefetchState { accesses, misses_without, covered, polluted } = state;
        let misses_with = misses_without.checked_sub(covered).and_then(|left| left.checked_add(polluted));
        PrefetchEffect::from_counts(accesses, misses_without, misses_with.unwrap_or(u64::MAX), covered)
    }
}

impl PrefetchEffect {
    /// Creates the effect from the counts of a run without and of a run with prefetching; `covered` accesses of the second
    /// are hits that the first missed.
    ///
    /// # Errors
    /// [`MetricError::Prefetch`] if there are no two such runs: more misses than accesses, more covered than missed
    /// without, more polluted than hit without.
    pub fn from_counts(accesses: u64, misses_without: u64, misses_with: u64, covered: u64) -> Result<PrefetchEffect> {
        let check = |what, found, least, most| {
            if (least..=most).contains(&found) {
                Ok(())
            } else {
                Err(MetricError::Prefetch { what, found, least, most })
            }
        };
        check("number of misses without prefetching", misses_without, 0, accesses)?;
        check("number of covered misses", covered, 0, misses_without)?;
        let left = misses_without - covered;
        check("number of misses with prefetching", misses_with, left, accesses - covered)?;
        Ok(PrefetchEffect { accesses, misses_without, covered, polluted: misses_with - left })
    }

    /// Counts an access by its outcome in both runs.
    pub fn observe(&mut self, hit_without: bool, hit_with: bool) {
        self.accesses += 1;
        self.misses_without += u64::from(!hit_without);
        self.covered += u64::from(!hit_without && hit_with);
        self.polluted += u64::from(hit_without && !hit_with);
    }

    /// Adds the accesses of another part of the runs.
    pub fn merge(&mut self, other: &PrefetchEffect) {
        self.accesses += other.accesses;
        self.misses_without += other.misses_without;
        self.covered += other.covered;
        self.polluted += other.polluted;
    }

    /// Misses that prefetching covers, as a share of accesses; 0 without accesses.
    pub fn coverage(&self) -> f64 {
        self.covered as f64 / self.accesses.max(1) as f64
    }

    /// Hits that prefetching costs, as a share of accesses; 0 without accesses.
    pub fn pollution(&self) -> f64 {
        self.polluted as f64 / self.accesses.max(1) as f64
    }
}

/// Misses of a policy with prefetching at one capacity by their cause, as shares of all accesses.
///
/// # Formula
/// `compulsory + capacity + regret - covered + pollution` is the miss rate with prefetching.
///
/// ```
/// use lrc_metrics::{MissDecomposition, PrefetchEffect};
/// let demand = MissDecomposition { compulsory: 0.25, capacity: 0.25, forced_loads: 0.0, regret: 0.0 };
/// // 8 accesses, 4 misses; with prefetching 3, of which one was a hit.
/// let misses = demand.with_prefetching(&PrefetchEffect::from_counts(8, 4, 3, 2)?);
/// assert_eq!((misses.covered, misses.pollution, misses.miss_rate()), (0.25, 0.125, 0.375));
/// # Ok::<(), lrc_metrics::MetricError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefetchDecomposition {
    /// The misses of the policy without prefetching.
    pub demand: MissDecomposition,
    /// What prefetching covers of them.
    pub covered: f64,
    /// Hits without prefetching that it turns into misses.
    pub pollution: f64,
}

impl MissDecomposition {
    /// Adds what prefetching does to a run of the same policy and capacity.
    pub fn with_prefetching(self, effect: &PrefetchEffect) -> PrefetchDecomposition {
        PrefetchDecomposition { demand: self, covered: effect.coverage(), pollution: effect.pollution() }
    }

    /// The miss rate.
    pub fn miss_rate(&self) -> f64 {
        self.compulsory + self.capacity + self.regret
    }
}

impl PrefetchDecomposition {
    /// The miss rate with prefetching.
    pub fn miss_rate(&self) -> f64 {
        self.demand.miss_rate() - self.covered + self.pollution
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_equal_observations(outcomes in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..40)) {
            let mut effect = PrefetchEffect::default();
            let (mut first, mut second) = (PrefetchEffect::default(), PrefetchEffect::default());
            for (at, &(without, with)) in outcomes.iter().enumerate() {
                effect.observe(without, with);
                if at % 2 == 0 { first.observe(without, with) } else { second.observe(without, with) }
            }
            first.merge(&second);
            prop_assert_eq!(first, effect);
            let count = |of: &dyn Fn(&(bool, bool)) -> bool| outcomes.iter().filter(|outcome| of(outcome)).count() as u64;
            let (accesses, without, with) = (outcomes.len() as u64, count(&|o| !o.0), count(&|o| !o.1));
            let counted = PrefetchEffect::from_counts(accesses, without, with, count(&|o| !o.0 && o.1)).unwrap();
            prop_assert_eq!(counted, effect);
            let demand = without as f64 / accesses.max(1) as f64;
            let demand = MissDecomposition { compulsory: 0.0, capacity: demand, forced_loads: 0.0, regret: 0.0 };
            let misses = demand.with_prefetching(&effect).miss_rate();
            prop_assert!((misses - with as f64 / accesses.max(1) as f64).abs() < 1e-12);
            let text = serde_json::to_string(&effect).unwrap();
            prop_assert_eq!(serde_json::from_str::<PrefetchEffect>(&text).unwrap(), effect);
        }
    }

    #[test]
    fn impossible_counts_say_why() {
        let message = |accesses, without, with, covered| {
            PrefetchEffect::from_counts(accesses, without, with, covered).unwrap_err().to_string()
        };
        assert_eq!(message(3, 4, 0, 0), "number of misses without prefetching is 4, allowed are 0..=3");
        assert_eq!(message(3, 2, 0, 3), "number of covered misses is 3, allowed are 0..=2");
        assert_eq!(message(3, 2, 0, 1), "number of misses with prefetching is 0, allowed are 1..=2");
        assert_eq!(message(3, 2, 3, 1), "number of misses with prefetching is 3, allowed are 1..=2");
        let forged = r#"{"accesses":3,"misses_without":1,"covered":2,"polluted":0}"#;
        assert!(serde_json::from_str::<PrefetchEffect>(forged).unwrap_err().to_string().contains("covered"));
    }
}
