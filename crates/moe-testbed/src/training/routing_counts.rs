//! What the routers of a step did, counted.

use moe_model::RouterOutput;
use moe_trace::{DomainId, EMPTY_SLOT};

/// Routed slots by MoE layer, domain and expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RoutingCounts {
    domains: usize,
    experts: usize,
    /// `[layers][domains x experts]`, as chosen.
    slots: Vec<Vec<u64>>,
    dropped: u64,
}

impl RoutingCounts {
    /// Counts the routing of some sequences of one length, whose domains are given and below `domains`.
    pub(super) fn new(
        routers: &[RouterOutput],
        sequences: &[DomainId],
        domains: usize,
        experts: usize,
    ) -> RoutingCounts {
        let mut counts = RoutingCounts { domains, experts, slots: Vec::new(), dropped: 0 };
        for router in routers {
            let mut slots = vec![0; domains * experts];
            let of_sequence = (router.experts.len() / sequences.len()).max(1);
            for (chosen, domain) in router.experts.chunks_exact(of_sequence).zip(sequences) {
                let row = &mut slots[domain.index() * experts..][..experts];
                chosen.iter().filter(|&&expert| expert != EMPTY_SLOT).for_each(|&expert| row[usize::from(expert)] += 1);
            }
            counts.slots.push(slots);
            let pairs = router.experts.iter().zip(&router.served);
            counts.dropped += pairs.filter(|(chosen, served)| chosen != served).count() as u64;
        }
        counts
    }

    /// Adds the counts of other sequences of the same model.
    pub(super) fn add(&mut self, other: &RoutingCounts) {
        for (sum, more) in self.slots.iter_mut().flatten().zip(other.slots.iter().flatten()) {
            *sum += more;
        }
        self.dropped += other.dropped;
    }

    /// Slots that each expert of a layer got.
    pub(super) fn load(&self, layer: usize) -> Vec<u64> {
        let mut load = vec![0; self.experts];
        for row in self.slots[layer].chunks_exact(self.experts) {
            load.iter_mut().zip(row).for_each(|(sum, slots)| *sum += slots);
        }
        load
    }

    /// The share of a layer's slots that each expert got.
    pub(super) fn shares(&self, layer: usize) -> Vec<f32> {
        let load = self.load(layer);
        let total = load.iter().sum::<u64>().max(1) as f32;
        load.into_iter().map(|slots| slots as f32 / total).collect()
    }

    /// The share of the slots that went to an expert from the domain that uses the expert most, mean over layers:
    /// `sum_e max_d n(e, d) / N`.
    pub(super) fn purity(&self) -> f64 {
        self.mean_over_layers(|counts, layer| {
            let most = |expert| (0..counts.domains).map(move |domain| domain * counts.experts + expert);
            let most = |expert| most(expert).map(|cell| counts.slots[layer][cell]).max().unwrap_or(0);
            (0..counts.experts).map(most).sum::<u64>() as f64 / counts.slots[layer].iter().sum::<u64>().max(1) as f64
        })
    }

    /// How far the busiest expert is above an even load, as a fraction of it, mean over layers: `MaxVio` of arXiv
    /// 2408.15664.
    pub(super) fn max_violation(&self) -> f64 {
        self.mean_over_layers(|counts, layer| {
            let load = counts.load(layer);
            let even = load.iter().sum::<u64>().max(1) as f64 / counts.experts as f64;
            load.into_iter().max().unwrap_or(0) as f64 / even - 1.0
        })
    }

    /// The share of the slots that were dropped.
    pub(super) fn dropped(&self) -> f64 {
        self.dropped as f64 / self.slots.iter().flatten().sum::<u64>().max(1) as f64
    }

    fn mean_over_layers(&self, figure: impl Fn(&RoutingCounts, usize) -> f64) -> f64 {
        (0..self.slots.len()).map(|layer| figure(self, layer)).sum::<f64>() / self.slots.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    /// A layer's output with two slots a token, two tokens a sequence.
    fn output(experts: &[u16], served: &[u16]) -> RouterOutput {
        let tokens = experts.len() / 2;
        let zeros = |width| Tensor::zeros((tokens, width), DType::F32, &Device::Cpu).unwrap();
        let (experts, served) = (experts.to_vec(), served.to_vec());
        RouterOutput { logits: None, probs: zeros(3), experts, served, weights: zeros(2) }
    }

    #[test]
    fn figures_by_hand() {
        let none = EMPTY_SLOT;
        let domains = [DomainId(0), DomainId(1)];
        // Domain 0: expert 0 three times, expert 1 once; domain 1: expert 1 twice, expert 2 once, a slot left empty.
        let chosen = [0, 1, 0, 0, 1, 2, 1, none];
        let mut counts = RoutingCounts::new(&[output(&chosen, &[0, 1, 0, none, 1, 2, 1, none])], &domains, 2, 3);
        assert_eq!(counts.load(0), [3, 3, 1]);
        assert_eq!(counts.shares(0), [3.0 / 7.0, 3.0 / 7.0, 1.0 / 7.0]);
        // Of expert 1 two slots of three are from domain 1.
        assert_eq!((counts.purity(), counts.dropped()), (6.0 / 7.0, 1.0 / 7.0));
        assert!((counts.max_violation() - 2.0 / 7.0).abs() < 1e-12);
        // The other way round, nothing is left of the difference.
        counts.add(&RoutingCounts::new(&[output(&chosen, &chosen)], &[DomainId(1), DomainId(0)], 2, 3));
        assert_eq!((counts.load(0), counts.purity(), counts.dropped()), (vec![6, 6, 2], 0.5, 1.0 / 14.0));
    }

    #[test]
    fn figures_are_means_over_layers() {
        let pure = output(&[0, 0, 0, 0, 1, 1, 1, 1], &[0, 0, 0, 0, 1, 1, 1, 1]);
        let mixed = output(&[0, 1, 0, 1, 0, 1, 0, 1], &[0, 1, 0, 1, 0, 1, 0, 1]);
        let counts = RoutingCounts::new(&[pure, mixed], &[DomainId(0), DomainId(1)], 2, 2);
        assert_eq!((counts.purity(), counts.max_violation()), (0.75, 0.0));
    }
}
