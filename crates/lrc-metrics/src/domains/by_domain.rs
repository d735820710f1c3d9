//! Any metric, one text domain apart from the other.

use std::collections::BTreeMap;

use moe_trace::Sequence;
use serde::{Deserialize, Serialize};

use crate::{
    accumulate::{Accumulator, within},
    error::{MetricError, Result, same},
    srp::{Srp, SrpReport},
};

/// One accumulator for every domain of a trace.
///
/// A sequence without a domain counts in the [total](ByDomain::total) alone.
///
/// # Complexity
/// A sequence costs what the metric costs; memory is that of `domains + 1` accumulators, on every thread. For
/// accumulators of which one is large, such as [`TraceIntervals`](crate::TraceIntervals) of hundreds of experts, fold one
/// domain after the other.
///
/// ```
/// use lrc_metrics::{Accumulator, ByDomain, LoadBalance};
/// use moe_trace::{DomainId, Geometry, Phase, SequenceBuf};
///
/// // One layer of 2 experts, top-1; two domains that use one expert each.
/// let geometry = Geometry::decoder(1, 2, 1)?;
/// let mut load = ByDomain::new(&LoadBalance::new(&geometry), 2);
/// for (domain, experts) in [vec![0, 0, 0], vec![1]].into_iter().enumerate() {
///     let mut sequence = SequenceBuf::from_experts(&geometry, experts, Phase::Prefill)?;
///     sequence.domain = Some(DomainId(u16::try_from(domain)?));
///     load.update(&sequence.view(&geometry, 0)?)?;
/// }
/// assert_eq!(load.domains()[0].finish()[0].activation_rates, [1.0, 0.0]);
/// assert_eq!(load.total()?.finish()[0].activation_rates, [0.75, 0.25]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "ByDomainState<A>", bound(deserialize = "A: Accumulator + Deserialize<'de>"))]
pub struct ByDomain<A> {
    domains: Vec<A>,
    unlabelled: A,
}

/// What is read before it is checked.
#[derive(Deserialize)]
struct ByDomainState<A> {
    domains: Vec<A>,
    unlabelled: A,
}

impl<A: Accumulator> TryFrom<ByDomainState<A>> for ByDomain<A> {
    type Error = MetricError;

    fn try_from(state: ByDomainState<A>) -> Result<ByDomain<A>> {
        // Sums over so many domains fit into the counters of one.
        within("number of domains", 0, 1 << 16, state.domains.len() as u128)?;
        let by_domain = ByDomain { domains: state.domains, unlabelled: state.unlabelled };
        // Only accumulators of the same arguments have a total.
        by_domain.total()?;
        Ok(by_domain)
    }
}

impl<A: Accumulator> ByDomain<A> {
    /// Creates a copy of `empty` for each of `domains` domains.
    pub fn new(empty: &A, domains: usize) -> ByDomain<A> {
        ByDomain { domains: vec![empty.clone(); domains], unlabelled: empty.clone() }
    }

    /// The accumulators in the order of the source's domains.
    pub fn domains(&self) -> &[A] {
        &self.domains
    }

    /// All sequences, whatever their domain.
    ///
    /// # Errors
    /// None that merging accumulators of one origin can give.
    pub fn total(&self) -> Result<A> {
        let mut total = self.unlabelled.clone();
        for domain in &self.domains {
            total.merge(domain)?;
        }
        Ok(total)
    }
}

impl<A: Accumulator> Accumulator for ByDomain<A> {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        let domains = self.domains.len();
        let accumulator = match sequence.domain() {
            None => &mut self.unlabelled,
            Some(domain) => {
                let domain = domain.index();
                self.domains.get_mut(domain).ok_or(MetricError::Domain { domain, domains })?
            }
        };
        accumulator.update(sequence)
    }

    fn merge(&mut self, other: &ByDomain<A>) -> Result<()> {
        same("number of domains", &self.domains.len(), &other.domains.len())?;
        for (sum, more) in self.domains.iter_mut().zip(&other.domains) {
            sum.merge(more)?;
        }
        self.unlabelled.merge(&other.unlabelled)
    }
}

impl ByDomain<Srp> {
    /// SRP of every domain beside that of all sequences, by window length; a length of which no sequence has a window is
    /// absent.
    ///
    /// # Errors
    /// [`MetricError::WindowTooLong`] if no sequence has a window of any of the lengths.
    pub fn finish(&self) -> Result<BTreeMap<usize, DomainSrp>> {
        let all = self.total()?.finish()?;
        let mut domains: Vec<_> = self.domains.iter().map(Srp::reports).collect();
        let mut beside = |all| DomainSrp { all, domains: domains.iter_mut().map(Iterator::next).collect() };
        Ok(all.into_iter().map(|(window, all)| (window, beside(all))).collect())
    }
}

/// SRP of each domain beside that of all sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DomainSrp {
    /// All sequences.
    pub all: SrpReport,
    /// The domains in the order of the source's; `None` where a domain has no window.
    pub domains: Vec<Option<SrpReport>>,
}

impl DomainSrp {
    /// SRP of each domain relative to that of all sequences, at the level that `srp` picks from a report.
    ///
    /// `None` where a domain has no window or the SRP of all sequences is 0.
    ///
    /// # Formula
    /// `SRP(domain) / SRP(all)`: above 1 where the routing of the domain is more consistent than that of the corpus.
    ///
    /// # References
    /// arXiv 2505.16056, section 3.
    ///
    /// ```
    /// use lrc_metrics::{Accumulator, ByDomain, Srp};
    /// use moe_trace::{DomainId, Geometry, Phase, SequenceBuf};
    ///
    /// // Windows of 2 tokens, 2 experts, top-1. Domain 0: A A. Domain 1: A B.
    /// let geometry = Geometry::decoder(1, 2, 1)?;
    /// let mut srp = ByDomain::new(&Srp::new(&geometry, &[2])?, 2);
    /// for (domain, experts) in [vec![0, 0], vec![0, 1]].into_iter().enumerate() {
    ///     let mut sequence = SequenceBuf::from_experts(&geometry, experts, Phase::Prefill)?;
    ///     sequence.domain = Some(DomainId(u16::try_from(domain)?));
    ///     srp.update(&sequence.view(&geometry, 0)?)?;
    /// }
    /// let report = &srp.finish()?[&2];
    /// // Domain 0 is perfect, domain 1 selects 2 experts for 1: F1 = 2 * 2 / (4 + 2). Together A is used 2 and 1 times,
    /// // B once: F1(1) = 2 * 4 / (6 + 4).
    /// assert_eq!(report.all.model.srp, 0.8);
    /// let relative = report.relative(|report| report.model.srp);
    /// assert_eq!(relative, [Some(1.0 / 0.8), Some((2.0 / 3.0) / 0.8)]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn relative(&self, srp: impl Fn(&SrpReport) -> f64) -> Vec<Option<f64>> {
        let all = srp(&self.all);
        let relative = |domain: &Option<SrpReport>| domain.as_ref().filter(|_| all > 0.0).map(|of| srp(of) / all);
        self.domains.iter().map(relative).collect()
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{DomainId, Geometry, Phase, SequenceBuf};

    use super::*;

    #[test]
    fn domains_out_of_range_and_of_another_number_say_so() {
        let geometry = Geometry::decoder(1, 2, 1).unwrap();
        let mut sequence = SequenceBuf::from_experts(&geometry, vec![0, 1], Phase::Prefill).unwrap();
        sequence.domain = Some(DomainId(2));
        let empty = Srp::new(&geometry, &[2]).unwrap();
        let mut srp = ByDomain::new(&empty, 2);
        let error = srp.update(&sequence.view(&geometry, 0).unwrap()).unwrap_err().to_string();
        assert_eq!(error, "domain 2 is out of range, the accumulator has 2 domains");
        let error = srp.merge(&ByDomain::new(&empty, 3)).unwrap_err().to_string();
        assert_eq!(error, "accumulators do not belong together: number of domains is 3, expected 2");
    }

    #[test]
    fn one_domain_is_all_and_a_domain_without_windows_is_none() {
        let geometry = Geometry::decoder(1, 2, 1).unwrap();
        let mut sequence = SequenceBuf::from_experts(&geometry, vec![0, 1, 1], Phase::Prefill).unwrap();
        sequence.domain = Some(DomainId(0));
        let mut srp = ByDomain::new(&Srp::new(&geometry, &[2]).unwrap(), 2);
        srp.update(&sequence.view(&geometry, 0).unwrap()).unwrap();
        let report = &srp.finish().unwrap()[&2];
        assert_eq!(report.domains, [Some(report.all.clone()), None]);
        assert_eq!(report.relative(|report| report.model.srp), [Some(1.0), None]);
        assert_eq!(report.relative(|_| 0.0), [None, None]);
    }
}
