//! The experts that a trained router gave each domain.

use lrc_metrics::DomainLoad;
use moe_model::reference_experts;
use moe_trace::ExpertId;

/// Gives every expert of a layer to a domain, as many to each as the reference router does, those first whose activation
/// rates in a domain stand out most over their mean of all domains.
///
/// A trained router may use any expert for any domain; this is the order of its experts in which it is to be compared
/// with a reference.
pub(crate) fn matched_experts(load: &DomainLoad, layer: usize) -> Vec<Vec<ExpertId>> {
    let mean = &load.all[layer].activation_rates;
    let experts = u16::try_from(mean.len()).expect("a geometry has at most 65535 experts");
    let room: Vec<usize> = reference_experts(load.domains.len(), experts).iter().map(Vec::len).collect();
    let mut excess: Vec<(f64, usize, u16)> = Vec::new();
    for (domain, layers) in load.domains.iter().enumerate() {
        let rates = layers[layer].activation_rates.iter().zip(mean).zip(0..experts);
        excess.extend(rates.map(|((rate, mean), expert)| (rate - mean, domain, expert)));
    }
    excess.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let (mut of_domain, mut taken) = (vec![Vec::new(); room.len()], vec![false; mean.len()]);
    for (_, domain, expert) in excess {
        if !taken[usize::from(expert)] && of_domain[domain].len() < room[domain] {
            taken[usize::from(expert)] = true;
            of_domain[domain].push(ExpertId(expert));
        }
    }
    of_domain
}

#[cfg(test)]
mod tests {
    use lrc_metrics::{Accumulator, ByDomain, LoadBalance};
    use moe_trace::{DomainId, Geometry, Phase, SequenceBuf};

    use super::*;

    #[test]
    fn a_permuted_reference_is_found() {
        // Domain 0 uses experts 3 and 1, domain 1 experts 0 and 2.
        let geometry = Geometry::decoder(1, 4, 2).unwrap();
        let mut load = ByDomain::new(&LoadBalance::new(&geometry), 2);
        for (domain, experts) in [(0, [3, 1]), (1, [0, 2])] {
            let mut sequence = SequenceBuf::from_experts(&geometry, experts.repeat(4), Phase::Prefill).unwrap();
            sequence.domain = Some(DomainId(domain));
            load.update(&sequence.view(&geometry, 0).unwrap()).unwrap();
        }
        let matched = matched_experts(&load.finish().unwrap(), 0);
        assert_eq!(matched, [[ExpertId(1), ExpertId(3)], [ExpertId(0), ExpertId(2)]]);
    }
}
