//! A router beside one that knows the domain, and beside three that know little.

use moe_trace::{ExpertId, Geometry, LayerId, Sequence};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    null_router::NullRouter,
    reference_counts::{ReferenceCounts, RoutingAgreement},
};
use crate::{
    accumulate::{Accumulator, Restore, Selection, checked_serde, intact, within},
    error::{MetricError, Result, same},
};

/// Shuffles that the null of shuffled labels is the mean of.
const SHUFFLES: u64 = 32;

/// Compares routing with a reference router that gives every domain experts of its own.
///
/// Every figure comes with what it is for routing that has nothing to do with the domain: the same routing under labels
/// shuffled over sequences, a router that sees only the position of a token, a router that hashes its id. Sequences
/// without a domain are left out.
///
/// # Formula
/// [`RoutingAgreement`]. The shuffled figure is the mean over 32 seeded shuffles; the other two null routers draw as many
/// experts for a token as it uses.
///
/// # Complexity
/// `O(experts)` a token and layer. Memory is `8 * layers * experts` bytes a sequence, kept since which labels there are
/// to shuffle shows at the end: 1,000 sequences of 16 layers of 64 experts take 8 MB, of 60 layers of 384 experts
/// 184 MB. Choose layers where that is much.
///
/// # References
/// arXiv 2604.07030.
///
/// ```
/// use lrc_metrics::{Accumulator, ReferenceRouting};
/// use moe_trace::{DomainId, ExpertId, Geometry, LayerId, Phase, SequenceBuf};
///
/// // Two domains, an expert for each; domain 0 is always right, domain 1 in one of two cases.
/// let geometry = Geometry::decoder(1, 2, 1)?;
/// let reference = [vec![ExpertId(0)], vec![ExpertId(1)]];
/// let mut routing = ReferenceRouting::new(&geometry, &[LayerId(0)], &reference, 7)?;
/// for (domain, experts) in [vec![0, 0, 0, 0], vec![1, 0]].into_iter().enumerate() {
///     let mut sequence = SequenceBuf::from_experts(&geometry, experts, Phase::Prefill)?;
///     sequence.domain = Some(DomainId(u16::try_from(domain)?));
///     routing.update(&sequence.view(&geometry, 0)?)?;
/// }
/// let layer = &routing.finish()[0];
/// assert_eq!((layer.router.precision, layer.router.purity), (5.0 / 6.0, 5.0 / 6.0));
/// assert_eq!(layer.hash, None); // the trace has no token ids
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct ReferenceRouting {
    selection: Selection,
    /// The experts of each domain, in order.
    reference: Vec<Vec<u16>>,
    seed: u64,
    sequences: Vec<SequenceCounts>,
    /// By layer.
    position: Vec<ReferenceCounts>,
    /// By layer.
    hash: Vec<ReferenceCounts>,
    /// Sequences whose token ids are not known.
    without_ids: u64,
    #[serde(skip)]
    null: NullRouter,
}

/// What one sequence uses; ordered, so that sequences have one order whatever the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct SequenceCounts {
    domain: usize,
    tokens: u32,
    /// Routed slots, `[layers x experts]`.
    slots: Vec<u32>,
    /// First experts, `[layers x experts]`.
    first: Vec<u32>,
}

/// Agreement of one layer with the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerAgreement {
    /// Number of the MoE layer.
    pub layer: usize,
    /// The router of the trace.
    pub router: RoutingAgreement,
    /// The same under labels shuffled over sequences.
    pub shuffled: RoutingAgreement,
    /// A router that sees only the position of a token.
    pub position: RoutingAgreement,
    /// A router that hashes the id of a token; `None` if a sequence has no ids.
    pub hash: Option<RoutingAgreement>,
}

impl ReferenceRouting {
    /// Creates the comparison of some layers with a reference, the experts of each domain in the order of the source's.
    ///
    /// # Errors
    /// [`MetricError::NoLayers`] or a layer out of range; [`MetricError::NoDomains`]; [`MetricError::ReferenceExpert`].
    pub fn new(
        geometry: &Geometry,
        layers: &[LayerId],
        reference: &[Vec<ExpertId>],
        seed: u64,
    ) -> Result<ReferenceRouting> {
        let selection = Selection::new(geometry, layers)?;
        let experts = geometry.experts();
        if reference.is_empty() {
            return Err(MetricError::NoDomains);
        }
        for (domain, set) in reference.iter().enumerate() {
            if let Some(expert) = set.iter().map(|expert| expert.index()).find(|&expert| expert >= experts) {
                return Err(MetricError::ReferenceExpert { domain, expert, experts });
            }
        }
        let set = |set: &Vec<ExpertId>| {
            let mut set: Vec<u16> = set.iter().map(|expert| expert.0).collect();
            set.sort_unstable();
            set.dedup();
            set
        };
        let counts = vec![ReferenceCounts::new(reference.len(), experts); layers.len()];
        Ok(ReferenceRouting {
            selection,
            reference: reference.iter().map(set).collect(),
            seed,
            sequences: Vec::new(),
            position: counts.clone(),
            hash: counts,
            without_ids: 0,
            null: NullRouter::new(seed, experts),
        })
    }

    /// The agreement of every layer, in the order in which they were selected.
    pub fn finish(&self) -> Vec<LayerAgreement> {
        let mut sequences: Vec<&SequenceCounts> = self.sequences.iter().collect();
        sequences.sort_unstable();
        let labels: Vec<usize> = sequences.iter().map(|sequence| sequence.domain).collect();
        let router = self.agreement(&sequences, &labels);
        let shuffle = |number: u64| {
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            random.set_stream(number);
            let mut labels = labels.clone();
            labels.shuffle(&mut random);
            self.agreement(&sequences, &labels)
        };
        let shuffles: Vec<Vec<RoutingAgreement>> = (0..SHUFFLES).into_par_iter().map(shuffle).collect();
        let layer = |(position, layer): (usize, &LayerId)| LayerAgreement {
            layer: layer.index(),
            router: router[position],
            shuffled: mean(shuffles.iter().map(|layers| layers[position])),
            position: self.position[position].agreement(&self.reference),
            hash: (self.without_ids == 0).then(|| self.hash[position].agreement(&self.reference)),
        };
        self.selection.layers().iter().enumerate().map(layer).collect()
    }

    /// The agreement of every layer with these labels of the sequences.
    fn agreement(&self, sequences: &[&SequenceCounts], labels: &[usize]) -> Vec<RoutingAgreement> {
        let experts = self.selection.experts();
        let layer = |position: usize| {
            let row = position * experts..(position + 1) * experts;
            let mut counts = ReferenceCounts::new(self.reference.len(), experts);
            for (sequence, &label) in sequences.iter().zip(labels) {
                counts.add(label, &sequence.slots[row.clone()], &sequence.first[row.clone()], sequence.tokens);
            }
            counts.agreement(&self.reference)
        };
        (0..self.selection.layers().len()).map(layer).collect()
    }
}

/// Adds what a null router, which sees `key` of a token alone, does to a sequence.
fn add_null(
    null: &mut NullRouter,
    layers: &[LayerId],
    counts: &mut [ReferenceCounts],
    sequence: &Sequence<'_>,
    domain: usize,
    key: impl Fn(usize) -> u64,
) {
    let experts = sequence.geometry().experts();
    for (&layer, counts) in layers.iter().zip(counts) {
        for token in 0..sequence.len() {
            let drawn = null.route(layer, key(token), sequence.experts(token, layer).count());
            for (rank, expert) in drawn.iter().enumerate() {
                let cell = domain * experts + expert;
                counts.slots[cell] += 1;
                counts.first[cell] += u64::from(rank == 0);
            }
        }
        counts.tokens[domain] += sequence.len() as u64;
    }
}

fn mean(values: impl ExactSizeIterator<Item = RoutingAgreement>) -> RoutingAgreement {
    let count = values.len().max(1) as f64;
    values.fold(RoutingAgreement::default(), |sum, value| RoutingAgreement {
        purity: sum.purity + value.purity / count,
        top1: sum.top1 + value.top1 / count,
        precision: sum.precision + value.precision / count,
        coverage: sum.coverage + value.coverage / count,
        nmi: sum.nmi + value.nmi / count,
    })
}

impl Accumulator for ReferenceRouting {
    fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        self.selection.check(sequence)?;
        let Some(domain) = sequence.domain() else { return Ok(()) };
        let (domain, domains) = (domain.index(), self.reference.len());
        if domain >= domains {
            return Err(MetricError::Domain { domain, domains });
        }
        let tokens = u32::try_from(sequence.len())
            .map_err(|_| MetricError::SequenceLength { tokens: sequence.len(), limit: u32::MAX as usize })?;
        let experts = self.selection.experts();
        let cells = self.selection.layers().len() * experts;
        let mut counts = SequenceCounts { domain, tokens, slots: vec![0; cells], first: vec![0; cells] };
        for (position, &layer) in self.selection.layers().iter().enumerate() {
            for token in 0..sequence.len() {
                for (rank, expert) in sequence.experts(token, layer).enumerate() {
                    counts.slots[position * experts + expert.index()] += 1;
                    counts.first[position * experts + expert.index()] += u32::from(rank == 0);
                }
            }
        }
        self.sequences.push(counts);
        let (null, layers) = (&mut self.null, self.selection.layers());
        add_null(null, layers, &mut self.position, sequence, domain, |token| token as u64);
        match sequence.token_ids() {
            Some(ids) => add_null(null, layers, &mut self.hash, sequence, domain, |token| u64::from(ids[token])),
            None => self.without_ids += 1,
        }
        Ok(())
    }

    fn merge(&mut self, other: &ReferenceRouting) -> Result<()> {
        self.selection.same(&other.selection)?;
        same("seed", &self.seed, &other.seed)?;
        same("reference", &self.reference, &other.reference)?;
        self.sequences.extend_from_slice(&other.sequences);
        self.position.iter_mut().zip(&other.position).for_each(|(sum, more)| sum.merge(more));
        self.hash.iter_mut().zip(&other.hash).for_each(|(sum, more)| sum.merge(more));
        self.without_ids += other.without_ids;
        Ok(())
    }
}

checked_serde!(ReferenceRouting);

impl Restore for ReferenceRouting {
    fn restore(&mut self) -> Result<()> {
        let (layers, experts, domains) =
            (self.selection.layers().len(), self.selection.experts(), self.reference.len());
        within("number of domains", 1, 1 << 16, domains as u128)?;
        for set in &self.reference {
            set.iter().try_for_each(|&expert| within("expert of a set", 0, experts as u128 - 1, expert.into()))?;
            let rising = set.windows(2).all(|pair| pair[0] < pair[1]);
            intact("order of the experts of a set", &true, &rising)?;
        }
        for sequence in &self.sequences {
            within("domain", 0, (domains as u128).saturating_sub(1), sequence.domain as u128)?;
            intact("number of counts of a sequence", &(layers * experts), &sequence.slots.len())?;
            intact("number of counts of a sequence", &(layers * experts), &sequence.first.len())?;
        }
        for null in [&self.position, &self.hash] {
            intact("number of layers", &layers, &null.len())?;
            null.iter().try_for_each(|counts| counts.check(domains, experts))?;
        }
        within("number of sequences without ids", 0, self.sequences.len() as u128, self.without_ids.into())?;
        self.null = NullRouter::new(self.seed, experts);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{DomainId, Phase, SequenceBuf};

    use super::*;

    #[test]
    fn nulls_are_far_below_a_router_that_knows_the_domain() {
        // Four domains with an expert each, 10 sequences of 20 tokens a domain.
        let geometry = Geometry::decoder(1, 4, 1).unwrap();
        let reference: Vec<Vec<ExpertId>> = geometry.expert_ids().map(|expert| vec![expert]).collect();
        let mut routing = ReferenceRouting::new(&geometry, &[LayerId(0)], &reference, 1).unwrap();
        for number in 0..40u16 {
            let mut sequence = SequenceBuf::from_experts(&geometry, vec![number % 4; 20], Phase::Prefill).unwrap();
            sequence.domain = Some(DomainId(number % 4));
            sequence.token_ids = Some((0..20).map(|token| token * 37 + u32::from(number)).collect());
            routing.update(&sequence.view(&geometry, 0).unwrap()).unwrap();
        }
        let layer = &routing.finish()[0];
        assert_eq!((layer.router.nmi, layer.router.top1, layer.router.coverage), (1.0, 1.0, 1.0));
        for null in [layer.shuffled, layer.position, layer.hash.unwrap()] {
            assert!((0.15..0.35).contains(&null.precision) && null.nmi < 0.2 && null.purity < 0.6, "{null:?}");
        }
    }

    #[test]
    fn bad_references_and_domains_say_why() {
        let geometry = Geometry::decoder(1, 2, 1).unwrap();
        let create =
            |reference: &[Vec<ExpertId>], seed| ReferenceRouting::new(&geometry, &[LayerId(0)], reference, seed);
        let error = create(&[vec![], vec![ExpertId(2)]], 1).unwrap_err().to_string();
        assert_eq!(error, "reference of domain 1: expert 2 is out of range, a layer has 2");
        assert_eq!(create(&[], 1).unwrap_err().to_string(), "a reference router needs at least one domain");
        let mut routing = create(&[vec![ExpertId(0)]], 1).unwrap();
        let mut sequence = SequenceBuf::from_experts(&geometry, vec![0], Phase::Prefill).unwrap();
        sequence.domain = Some(DomainId(1));
        let error = routing.update(&sequence.view(&geometry, 0).unwrap()).unwrap_err().to_string();
        assert_eq!(error, "domain 1 is out of range, the accumulator has 1 domains");
        let error = routing.merge(&create(&[vec![ExpertId(0)]], 2).unwrap()).unwrap_err().to_string();
        assert_eq!(error, "accumulators do not belong together: seed is 2, expected 1");
        // Without a domain there is nothing to compare.
        sequence.domain = None;
        routing.update(&sequence.view(&geometry, 0).unwrap()).unwrap();
        assert_eq!(routing.finish()[0].router, RoutingAgreement::default());
    }
}
