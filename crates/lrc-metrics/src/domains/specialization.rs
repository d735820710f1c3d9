//! How differently the domains of a corpus use an expert.

use serde::{Deserialize, Serialize};

use super::by_domain::ByDomain;
use crate::{
    error::Result,
    experts::{LayerLoad, LoadBalance},
};

/// Activation rates up to this are left out of a domain specialization.
const LEAST_RATE: f64 = 1e-5;

/// Coefficient of variation of an expert's activation rate over domains.
///
/// `None` if fewer than two domains use the expert.
///
/// # Formula
/// `sd(act) / mean(act)` over the domains `d` with `act(e, d) > 1e-5`, `sd` with the divisor `n - 1`.
///
/// # References
/// arXiv 2505.16056, section 3.
///
/// ```
/// // The mean of 0.1 and 0.3 is 0.2, their sample deviation sqrt(0.02); the third domain does not use the expert.
/// let specialization = lrc_metrics::domain_specialization(&[0.1, 0.3, 0.0]).unwrap();
/// assert!((specialization - 0.5f64.sqrt()).abs() < 1e-12);
/// ```
pub fn domain_specialization(activation_rates: &[f64]) -> Option<f64> {
    let used = || activation_rates.iter().filter(|&&rate| rate > LEAST_RATE);
    let count = used().count();
    if count < 2 {
        return None;
    }
    let mean = used().sum::<f64>() / count as f64;
    let variance = used().map(|rate| (rate - mean).powi(2)).sum::<f64>() / (count - 1) as f64;
    Some(variance.sqrt() / mean)
}

/// Load of the experts in each domain beside that of all sequences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DomainLoad {
    /// All sequences, by layer.
    pub all: Vec<LayerLoad>,
    /// By domain in the order of the source's, by layer.
    pub domains: Vec<Vec<LayerLoad>>,
}

impl ByDomain<LoadBalance> {
    /// Load of every domain beside that of all sequences.
    ///
    /// # Errors
    /// As [`ByDomain::total`].
    pub fn finish(&self) -> Result<DomainLoad> {
        let domains = self.domains().iter().map(LoadBalance::finish).collect();
        Ok(DomainLoad { all: self.total()?.finish(), domains })
    }
}

impl DomainLoad {
    /// [`domain_specialization`] of every expert, by layer and expert.
    pub fn specialization(&self) -> Vec<Vec<Option<f64>>> {
        let expert = |layer: usize, expert: usize| {
            let rate = |domain: &Vec<LayerLoad>| domain[layer].activation_rates[expert];
            domain_specialization(&self.domains.iter().map(rate).collect::<Vec<_>>())
        };
        let layer = |(position, load): (usize, &LayerLoad)| {
            (0..load.activation_rates.len()).map(|number| expert(position, number)).collect()
        };
        self.all.iter().enumerate().map(layer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_domain_has_no_specialization() {
        assert_eq!(domain_specialization(&[]), None);
        assert_eq!(domain_specialization(&[0.5]), None);
        assert_eq!(domain_specialization(&[0.5, 1e-5]), None);
    }

    #[test]
    fn equal_use_is_no_specialization() {
        assert_eq!(domain_specialization(&[0.25, 0.25, 0.25]), Some(0.0));
    }
}
