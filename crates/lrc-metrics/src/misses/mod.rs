//! Where misses come from, and what no policy can avoid.

mod prefetch;

pub use prefetch::{PrefetchDecomposition, PrefetchEffect};

use expert_cache::curve::CurvePolicy;
use serde::{Deserialize, Serialize};

use crate::trace::{HitRates, LayerReport, ModelReport, PoolReport};

/// Misses of a policy at one capacity by their cause, as shares of all accesses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MissDecomposition {
    /// Misses that remain when everything fits: first touches, if they count as misses.
    pub compulsory: f64,
    /// What Belady's policy misses beyond that, for want of slots.
    pub capacity: f64,
    /// The part of `capacity` that Belady with bypass does not miss: the price of loading every miss.
    ///
    /// With bypass no policy has fewer misses. Below as many slots as a token has experts the share is large: whatever
    /// must load replaces what it needs again.
    pub forced_loads: f64,
    /// What the policy misses beyond Belady's, for want of foresight.
    ///
    /// It can be negative, though never by more than `forced_loads`: in the paper convention all accesses of a token are
    /// judged on the state before it, for which Belady's choice is not always the best of those that load every miss.
    pub regret: f64,
}

/// Splits the misses of a hit-rate curve at every capacity, entry `i` for `i + 1` slots.
///
/// # Formula
/// ```text
/// compulsory   = 1 - belady(all)
/// capacity     = belady(all) - belady(c)
/// forced_loads = belady-bypass(c) - belady(c)
/// regret       = belady(c) - policy(c)
/// ```
///
/// Compulsory, capacity and regret add up to the miss rate, and so do compulsory, `capacity - forced_loads` and
/// `regret + forced_loads`, with the optimum with bypass in the place of Belady's. Under
/// [`ColdStart::Free`](crate::ColdStart::Free) nothing is compulsory, and a first touch that finds no empty slot counts
/// with the capacity.
///
/// # Panics
/// If the curves differ in length.
///
/// ```
/// // A B A C A, first touches missed. With one slot Belady must load B and C, with bypass A stays; LRU is like Belady.
/// let (lru, belady, bypass) = ([0.0, 0.4, 0.4], [0.0, 0.4, 0.4], [0.4, 0.4, 0.4]);
/// let misses = lrc_metrics::decompose_misses(&lru, &belady, &bypass);
/// assert_eq!((misses[0].compulsory, misses[0].capacity, misses[0].forced_loads), (0.6, 0.4, 0.4));
/// assert_eq!((misses[1].compulsory, misses[1].capacity, misses[1].forced_loads), (0.6, 0.0, 0.0));
/// ```
pub fn decompose_misses(policy: &[f64], belady: &[f64], bypass: &[f64]) -> Vec<MissDecomposition> {
    assert_eq!(policy.len(), belady.len(), "curves of different pools");
    assert_eq!(policy.len(), bypass.len(), "curves of different pools");
    let all = belady.last().copied().unwrap_or_default();
    let of = |((&policy, &belady), &bypass): ((&f64, &f64), &f64)| MissDecomposition {
        compulsory: 1.0 - all,
        capacity: all - belady,
        forced_loads: bypass - belady,
        regret: belady - policy,
    };
    policy.iter().zip(belady).zip(bypass).map(of).collect()
}

/// Hit rates as shares of those of Belady's policy, or of another to compare with, at the same capacity; 1 where that
/// has no hit.
///
/// # References
/// arXiv 2505.16056, where the toy models' curves are shown so.
///
/// # Panics
/// If the curves differ in length.
///
/// ```
/// assert_eq!(lrc_metrics::relative_to(&[0.0, 0.25, 0.5], &[0.0, 0.5, 0.5]), [1.0, 0.5, 1.0]);
/// ```
pub fn relative_to(policy: &[f64], optimum: &[f64]) -> Vec<f64> {
    assert_eq!(policy.len(), optimum.len(), "curves of different pools");
    policy.iter().zip(optimum).map(|(hits, most)| if *most > 0.0 { hits / most } else { 1.0 }).collect()
}

/// Share of accesses that the best fixed set of experts serves, entry `i` for `i + 1` slots.
///
/// The set is chosen with the whole trace in sight and never changes, so nothing is loaded: what a cache should beat.
///
/// # Formula
/// The `c` largest activation rates, divided by the sum of all; 0 if no expert is used.
///
/// ```
/// assert_eq!(lrc_metrics::static_curve(&[0.25, 0.0, 0.75]), [0.75, 1.0, 1.0]);
/// ```
pub fn static_curve(activation_rates: &[f64]) -> Vec<f64> {
    let mut rates = activation_rates.to_vec();
    rates.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut sum = 0.0;
    for rate in &mut rates {
        sum += *rate;
        *rate = sum;
    }
    rates.iter().map(|served| if sum > 0.0 { served / sum } else { 0.0 }).collect()
}

impl ModelReport {
    /// Misses of a policy at every number of slots a layer, mean over layers; `None` if the policy was not measured.
    pub fn misses(&self, policy: CurvePolicy) -> Option<Vec<MissDecomposition>> {
        misses(&self.curves, policy)
    }
}

impl LayerReport {
    /// Misses of a policy at every number of slots; `None` if the policy was not measured.
    pub fn misses(&self, policy: CurvePolicy) -> Option<Vec<MissDecomposition>> {
        misses(&self.curves, policy)
    }
}

impl PoolReport {
    /// Misses of a policy at every number of slots; `None` if the policy was not measured.
    pub fn misses(&self, policy: CurvePolicy) -> Option<Vec<MissDecomposition>> {
        misses(&self.curves, policy)
    }
}

fn misses(curves: &HitRates, policy: CurvePolicy) -> Option<Vec<MissDecomposition>> {
    let of = |policy| curves.get(&policy);
    Some(decompose_misses(of(policy)?, of(CurvePolicy::Belady)?, of(CurvePolicy::BeladyBypass)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_used_is_zero() {
        assert_eq!(static_curve(&[0.0, 0.0]), [0.0, 0.0]);
        assert!(static_curve(&[]).is_empty() && decompose_misses(&[], &[], &[]).is_empty());
    }
}
