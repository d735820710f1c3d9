//! How well routing follows the domains of a text.

use serde::{Deserialize, Serialize};

use crate::{
    accumulate::{intact, total},
    error::Result,
};

/// How well a router agrees with a reference router that knows the domain, in `0..=1`.
///
/// # Formula
/// With `n(e, d)` the routed slots of expert `e` in text of domain `d`, `N` their sum, `A_t` the set and `a_t` the first
/// expert of token `t`, and `R_t` the experts that the reference gives to the token's domain:
///
/// ```text
/// purity    = sum_e max_d n(e, d) / N
/// top1      = share of tokens with a_t in R_t, of those that use an expert
/// precision = sum_t |A_t intersect R_t| / sum_t |A_t|
/// coverage  = sum_t |A_t intersect R_t| / sum_t |R_t|
/// nmi       = 2 I(e; d) / (H(e) + H(d))          of the joint distribution n(e, d) / N
/// ```
///
/// A quotient without a denominator is 0, such as `nmi` with one domain and one expert.
///
/// # References
/// arXiv 2604.07030.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoutingAgreement {
    /// Share of slots that belong to the most frequent domain of their expert.
    pub purity: f64,
    /// Share of tokens whose first expert is one of the reference's.
    pub top1: f64,
    /// Share of selected experts that the reference selects.
    pub precision: f64,
    /// Share of the reference's experts that are selected.
    pub coverage: f64,
    /// Normalized mutual information of expert and domain, arithmetic normalization.
    pub nmi: f64,
}

/// Counts of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReferenceCounts {
    /// Routed slots, `[domains x experts]`.
    pub(super) slots: Vec<u64>,
    /// First experts, `[domains x experts]`.
    pub(super) first: Vec<u64>,
    /// Tokens, `[domains]`.
    pub(super) tokens: Vec<u64>,
}

impl ReferenceCounts {
    pub(super) fn new(domains: usize, experts: usize) -> ReferenceCounts {
        let cells = vec![0; domains * experts];
        ReferenceCounts { slots: cells.clone(), first: cells, tokens: vec![0; domains] }
    }

    /// Adds counts of one domain.
    pub(super) fn add(&mut self, domain: usize, slots: &[u32], first: &[u32], tokens: u32) {
        let row = domain * slots.len()..(domain + 1) * slots.len();
        self.slots[row.clone()].iter_mut().zip(slots).for_each(|(sum, &more)| *sum += u64::from(more));
        self.first[row].iter_mut().zip(first).for_each(|(sum, &more)| *sum += u64::from(more));
        self.tokens[domain] += u64::from(tokens);
    }

    /// Checks a state that was read.
    pub(super) fn check(&self, domains: usize, experts: usize) -> Result<()> {
        intact("number of domains", &domains, &self.tokens.len())?;
        intact("number of counts", &(domains * experts), &self.slots.len())?;
        intact("number of counts", &(domains * experts), &self.first.len())?;
        total("number of slots", &self.slots)?;
        total("number of first experts", &self.first)?;
        total("number of tokens", &self.tokens)?;
        Ok(())
    }

    pub(super) fn merge(&mut self, other: &ReferenceCounts) {
        self.slots.iter_mut().zip(&other.slots).for_each(|(sum, more)| *sum += more);
        self.first.iter_mut().zip(&other.first).for_each(|(sum, more)| *sum += more);
        self.tokens.iter_mut().zip(&other.tokens).for_each(|(sum, more)| *sum += more);
    }

    /// The agreement with a reference, `[domains]`.
    pub(super) fn agreement(&self, reference: &[Vec<u16>]) -> RoutingAgreement {
        let experts = self.slots.len() / reference.len();
        let rows = || self.slots.chunks_exact(experts).zip(self.first.chunks_exact(experts)).zip(reference);
        let chosen = |counts: &[u64], set: &[u16]| set.iter().map(|&expert| counts[usize::from(expert)]).sum::<u64>();
        let right: u64 = rows().map(|((slots, _), set)| chosen(slots, set)).sum();
        let right_first: u64 = rows().map(|((_, first), set)| chosen(first, set)).sum();
        let referred: u64 = self.tokens.iter().zip(reference).map(|(tokens, set)| tokens * set.len() as u64).sum();
        let slots = self.slots.iter().sum();
        let most = |expert| self.slots.iter().skip(expert).step_by(experts).max().copied().unwrap_or(0);
        RoutingAgreement {
            purity: ratio((0..experts).map(most).sum(), slots),
            top1: ratio(right_first, self.first.iter().sum()),
            precision: ratio(right, slots),
            coverage: ratio(right, referred),
            nmi: self.normalized_mutual_information(experts),
        }
    }

    fn normalized_mutual_information(&self, experts: usize) -> f64 {
        let by_domain: Vec<u64> = self.slots.chunks_exact(experts).map(|row| row.iter().sum()).collect();
        let by_expert: Vec<u64> =
            (0..experts).map(|expert| self.slots.iter().skip(expert).step_by(experts).sum()).collect();
        let (joint, domain, expert) = (entropy(&self.slots), entropy(&by_domain), entropy(&by_expert));
        if domain + expert > 0.0 { (2.0 * (domain + expert - joint) / (domain + expert)).max(0.0) } else { 0.0 }
    }
}

/// Entropy of the distribution of counts, in nats.
fn entropy(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let shares = counts.iter().filter(|&&count| count > 0).map(|&count| ratio(count, total));
    shares.map(|share| -share * share.ln()).sum()
}

/// Counts stay below `2^53`, so their conversion to `f64` is exact.
fn ratio(numerator: u64, denominator: u64) -> f64 {
    numerator as f64 / denominator.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(sets: &[&[u16]]) -> Vec<Vec<u16>> {
        sets.iter().map(|set| set.to_vec()).collect()
    }

    #[test]
    fn a_router_that_knows_the_domain_agrees_in_everything() {
        let counts = ReferenceCounts { slots: vec![4, 0, 0, 4], first: vec![4, 0, 0, 4], tokens: vec![4, 4] };
        let all = RoutingAgreement { purity: 1.0, top1: 1.0, precision: 1.0, coverage: 1.0, nmi: 1.0 };
        assert_eq!(counts.agreement(&reference(&[&[0], &[1]])), all);
        // Of a reference of two experts a domain half is covered.
        assert_eq!(counts.agreement(&reference(&[&[0, 1], &[0, 1]])), RoutingAgreement { coverage: 0.5, ..all });
    }

    #[test]
    fn a_router_that_ignores_the_domain_shares_no_information_with_it() {
        let counts = ReferenceCounts { slots: vec![2, 2, 2, 2], first: vec![2, 2, 2, 2], tokens: vec![4, 4] };
        let half = RoutingAgreement { purity: 0.5, top1: 0.5, precision: 0.5, coverage: 0.5, nmi: 0.0 };
        assert_eq!(counts.agreement(&reference(&[&[0], &[1]])), half);
    }

    #[test]
    fn nothing_is_zero() {
        let counts = ReferenceCounts::new(2, 2);
        assert_eq!(counts.agreement(&reference(&[&[], &[]])), RoutingAgreement::default());
    }

    #[test]
    fn one_domain_has_no_information() {
        let counts = ReferenceCounts { slots: vec![3, 1], first: vec![3, 1], tokens: vec![4] };
        let agreement = counts.agreement(&reference(&[&[0]]));
        assert_eq!((agreement.purity, agreement.top1, agreement.nmi), (1.0, 0.75, 0.0));
    }

    #[test]
    fn mutual_information_by_hand() {
        // Expert 0 serves both domains alike, expert 1 the second alone: joint 1/4, 0, 1/4, 1/2.
        // H(e) = H(1/2, 1/2) = ln 2; H(d) = H(1/4, 3/4); H(e, d) = 3/2 ln 2.
        let counts = ReferenceCounts { slots: vec![1, 0, 1, 2], first: vec![1, 0, 1, 2], tokens: vec![1, 3] };
        let (expert, joint) = (2f64.ln(), 1.5 * 2f64.ln());
        let domain = 0.25 * 4f64.ln() + 0.75 * (4.0f64 / 3.0).ln();
        let nmi = 2.0 * (expert + domain - joint) / (expert + domain);
        assert!((counts.agreement(&reference(&[&[0], &[1]])).nmi - nmi).abs() < 1e-12);
    }
}
