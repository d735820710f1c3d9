//! Made-up routing with dialled properties.

use crate::{DomainId, Geometry, Phase, Result, SequenceBuf, SequenceStream};

/// The dials of [`Synthetic`].
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticOptions {
    /// Sequences of the trace.
    pub sequences: usize,
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Prefilled tokens at the beginning of each sequence; the others are decoded.
    pub prefill: usize,
    /// 0 to 1: how much of a token's routing noise the next token keeps. 0 routes every token anew, 1 never changes.
    pub locality: f64,
    /// Exponent of the popularity of experts by rank: 0 is balanced, 1 is Zipf's law.
    pub skew: f64,
    /// Number of domains; sequences take turns.
    pub domains: usize,
    /// How far the preferences of the domains lie apart, in units of the noise.
    pub domain_strength: f64,
    /// How far the preferences of one sequence lie from its domain's, in units of the noise.
    pub topic_strength: f64,
    /// 0 to 1: share of the experts whose popularity has become that of another at the end of the trace.
    pub drift: f64,
    /// Two generators of equal dials and seed make equal traces.
    pub seed: u64,
}

impl Default for SyntheticOptions {
    /// Dials like those of real models: sticky, mildly skewed, a topic for each sequence.
    fn default() -> SyntheticOptions {
        SyntheticOptions {
            sequences: 16,
            tokens: 512,
            prefill: 0,
            locality: 0.8,
            skew: 0.6,
            domains: 0,
            domain_strength: 0.7,
            topic_strength: 0.7,
            drift: 0.0,
            seed: 1,
        }
    }
}

/// A generator of routing with dialled locality, skew, domains and drift.
///
/// # Formula
/// Token `t` of sequence `s` uses the `top_k` experts `e` of highest score
///
/// ```text
/// -skew * ln rank_s(e)  +  domain_strength * D(d, e)  +  topic_strength * T(s, e)  +  z_t(e)
/// ```
///
/// in that order. `rank_s` is a random order of the experts of each layer, in which `drift` turns places into others from
/// the first to the last sequence; `D` and `T` are standard normal, drawn once a domain and once a sequence; `z` is an
/// autoregressive process of unit variance, `z_t = locality * z_{t-1} + sqrt(1 - locality^2) * noise`.
///
/// Router weights are the softmax of the scores of the chosen experts. A sequence depends on the dials, the seed and its
/// number alone, so sequences can be made in any order and in parallel.
///
/// ```
/// use moe_trace::{Geometry, RoutingSource, SequenceStream, Synthetic, SyntheticOptions};
/// let options = SyntheticOptions { sequences: 3, tokens: 20, domains: 2, ..SyntheticOptions::default() };
/// let trace = Synthetic::new(Geometry::decoder(2, 16, 4)?, options).collect()?;
/// assert_eq!((trace.len(), trace.sequence(2)?.len(), trace.domains().len()), (3, 20, 2));
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Synthetic {
    geometry: Geometry,
    options: SyntheticOptions,
    domains: Vec<String>,
    /// Scores of popularity before and after the drift, `[layers x experts]`.
    popularity: [Vec<f64>; 2],
    /// Preferences of the domains, `[domains x layers x experts]`.
    preferences: Vec<f64>,
    next: usize,
}

impl Synthetic {
    /// Creates a generator. Dials outside of their range are brought into it.
    pub fn new(geometry: Geometry, options: SyntheticOptions) -> Synthetic {
        let mut options = options;
        options.locality = options.locality.clamp(0.0, 1.0);
        options.drift = options.drift.clamp(0.0, 1.0);
        options.domains = options.domains.min(usize::from(u16::MAX));
        let experts = geometry.experts();
        let columns = geometry.layers() * experts;
        let mut random = Random::new(options.seed, 0);
        let mut before = vec![0.0; columns];
        let mut after = vec![0.0; columns];
        for (before, after) in before.chunks_mut(experts).zip(after.chunks_mut(experts)) {
            let order = random.order(experts);
            #[expect(clippy::cast_precision_loss, reason = "at most 65535 experts")]
            let score = |rank: usize| -options.skew * ((rank + 1) as f64).ln();
            order.iter().enumerate().for_each(|(rank, &expert)| before[expert] = score(rank));
            after.copy_from_slice(before);
            // A share of the experts pass their popularity round.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a share of experts"
            )]
            let drifting = (options.drift * experts as f64).round() as usize;
            let chosen = random.order(experts);
            for (index, &expert) in chosen[..drifting].iter().enumerate() {
                after[expert] = before[chosen[(index + 1) % drifting]];
            }
        }
        let preferences = (0..options.domains * columns).map(|_| random.normal()).collect();
        let domains = (0..options.domains).map(|domain| format!("domain {domain}")).collect();
        Synthetic { geometry, options, domains, popularity: [before, after], preferences, next: 0 }
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.options.sequences
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.options.sequences == 0
    }

    /// Makes the sequence of a number.
    pub fn sequence(&self, index: usize) -> SequenceBuf {
        let (experts, top_k) = (self.geometry.experts(), self.geometry.top_k());
        let columns = self.geometry.layers() * experts;
        let mut random = Random::new(self.options.seed, index as u64 + 1);
        let domain = if self.options.domains == 0 { None } else { Some(index % self.options.domains) };
        #[expect(clippy::cast_precision_loss, reason = "a share of the trace")]
        let age = index as f64 / self.options.sequences.saturating_sub(1).max(1) as f64;
        let base: Vec<f64> = (0..columns)
            .map(|column| {
                let [before, after] = [self.popularity[0][column], self.popularity[1][column]];
                let preference = domain.map_or(0.0, |domain| self.preferences[domain * columns + column]);
                let topic = self.options.topic_strength * random.normal();
                before + age * (after - before) + self.options.domain_strength * preference + topic
            })
            .collect();
        let mut noise: Vec<f64> = (0..columns).map(|_| random.normal()).collect();
        let keep = self.options.locality;
        let renew = (1.0 - keep * keep).sqrt();

        let slots = self.options.tokens * self.geometry.layers() * top_k;
        let (mut ids, mut weights) = (Vec::with_capacity(slots), Vec::with_capacity(slots));
        let mut ranked: Vec<u16> = Vec::with_capacity(experts);
        for _ in 0..self.options.tokens {
            for (base, noise) in base.chunks(experts).zip(noise.chunks(experts)) {
                let score = |expert: u16| base[usize::from(expert)] + noise[usize::from(expert)];
                let better = |a: &u16, b: &u16| score(*b).total_cmp(&score(*a)).then(a.cmp(b));
                ranked.clear();
                ranked.extend(self.geometry.expert_ids().map(|expert| expert.0));
                if top_k < experts {
                    ranked.select_nth_unstable_by(top_k, better);
                }
                ranked.truncate(top_k);
                ranked.sort_unstable_by(better);
                let best = score(ranked[0]);
                let total: f64 = ranked.iter().map(|&expert| (score(expert) - best).exp()).sum();
                #[expect(clippy::cast_possible_truncation, reason = "a trace has single precision")]
                weights.extend(ranked.iter().map(|&expert| ((score(expert) - best).exp() / total) as f32));
                ids.extend_from_slice(&ranked);
            }
            noise.iter_mut().for_each(|z| *z = keep * *z + renew * random.normal());
        }
        let phase = |token| if token < self.options.prefill { Phase::Prefill } else { Phase::Decode };
        SequenceBuf {
            experts: ids,
            weights: Some(weights),
            phases: (0..self.options.tokens).map(|token| phase(token).code()).collect(),
            domain: domain.and_then(|domain| u16::try_from(domain).ok()).map(DomainId),
            ..SequenceBuf::default()
        }
    }
}

impl SequenceStream for Synthetic {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn domains(&self) -> &[String] {
        &self.domains
    }

    fn model(&self) -> Option<&str> {
        Some("synthetic")
    }

    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>> {
        if self.next == self.options.sequences {
            return Ok(None);
        }
        self.next += 1;
        Ok(Some(self.sequence(self.next - 1)))
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): a few lines, so that traces do
/// not change with the version of a library.
struct Random {
    state: u64,
    /// The second number of a pair of normal ones.
    spare: Option<f64>,
}

impl Random {
    fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random { state: seed, spare: None };
        let first = random.next();
        random.state = first ^ stream.wrapping_mul(0xd134_2543_de82_ef95);
        random
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `(0, 1]`.
    fn uniform(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
        let bits = ((self.next() >> 11) + 1) as f64;
        bits / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (radius, angle) = ((-2.0 * self.uniform().ln()).sqrt(), std::f64::consts::TAU * self.uniform());
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// A random order of `0..len`.
    fn order(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<(u64, usize)> = (0..len).map(|index| (self.next(), index)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, index)| index).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LayerId, MemoryTrace, RoutingSource};

    fn make(options: SyntheticOptions) -> MemoryTrace {
        Synthetic::new(Geometry::decoder(1, 32, 4).unwrap(), options).collect().unwrap()
    }

    /// Mean share of experts that two sets of each pair have in common.
    fn overlap(trace: &MemoryTrace, pairs: impl Iterator<Item = ((usize, usize), (usize, usize))>) -> f64 {
        let set = |(sequence, token): (usize, usize)| {
            trace.sequence(sequence).unwrap().experts(token, LayerId(0)).map(|e| e.0).collect::<Vec<_>>()
        };
        let shares: Vec<f64> =
            pairs.map(|(a, b)| set(a).iter().filter(|id| set(b).contains(id)).count() as f64 / 4.0).collect();
        shares.iter().sum::<f64>() / shares.len() as f64
    }

    fn adjacent(locality: f64) -> f64 {
        let flat = SyntheticOptions {
            skew: 0.0,
            topic_strength: 0.0,
            sequences: 4,
            tokens: 256,
            ..SyntheticOptions::default()
        };
        let trace = make(SyntheticOptions { locality, ..flat });
        overlap(&trace, (0..4).flat_map(|s| (1..256).map(move |t| ((s, t - 1), (s, t)))))
    }

    #[test]
    fn locality_goes_from_chance_to_certainty() {
        let measured = [0.0, 0.5, 0.9, 1.0].map(adjacent);
        assert!((measured[0] - 4.0 / 32.0).abs() < 0.02, "chance is k / E: {measured:?}");
        assert!(measured[0] < measured[1] && measured[1] < measured[2], "{measured:?}");
        assert!((measured[3] - 1.0).abs() < 1e-12, "{measured:?}");
    }

    fn largest_share(skew: f64) -> f64 {
        let options = SyntheticOptions { skew, topic_strength: 0.0, locality: 0.0, ..SyntheticOptions::default() };
        let trace = make(options);
        let mut counts = [0usize; 32];
        trace.sequences().iter().flat_map(|s| &s.experts).for_each(|&id| counts[usize::from(id)] += 1);
        *counts.iter().max().unwrap() as f64 / counts.iter().sum::<usize>() as f64
    }

    #[test]
    fn skew_makes_experts_popular() {
        assert!((largest_share(0.0) - 1.0 / 32.0).abs() < 0.005);
        assert!(largest_share(1.5) > 3.0 / 32.0);
    }

    #[test]
    fn domains_route_like_themselves() {
        let options = SyntheticOptions {
            domains: 2,
            domain_strength: 2.0,
            skew: 0.0,
            topic_strength: 0.0,
            ..SyntheticOptions::default()
        };
        let trace = make(options);
        let pairs = |step: usize| (0..14).flat_map(move |s| (0..512).step_by(16).map(move |t| ((s, t), (s + step, t))));
        assert!(overlap(&trace, pairs(2)) > 2.0 * overlap(&trace, pairs(1)));
        assert_eq!(trace.sequences()[3].domain, Some(DomainId(1)));
    }

    #[test]
    fn drift_leaves_the_beginning_behind() {
        let compare = |drift: f64| {
            let still =
                SyntheticOptions { skew: 3.0, topic_strength: 0.0, locality: 0.0, ..SyntheticOptions::default() };
            let trace = make(SyntheticOptions { drift, ..still });
            overlap(&trace, (0..512).map(|t| ((0, t), (15, t))))
        };
        assert!(compare(1.0) < 0.6 * compare(0.0));
    }

    #[test]
    fn a_sequence_depends_on_its_number_alone() {
        let options =
            SyntheticOptions { sequences: 5, tokens: 30, prefill: 10, seed: 9, ..SyntheticOptions::default() };
        let trace = make(options.clone());
        let generator = Synthetic::new(Geometry::decoder(1, 32, 4).unwrap(), options);
        let backwards: Vec<SequenceBuf> = (0..5).rev().map(|index| generator.sequence(index)).collect();
        assert!(backwards.iter().rev().eq(trace.sequences()));
        assert_eq!(trace.sequences()[0].phases.iter().filter(|&&code| code == 0).count(), 10);
        let sum: f32 = trace.sequences()[0].weights.as_deref().unwrap()[..4].iter().sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert_ne!(trace.sequences()[0].experts, trace.sequences()[1].experts);
    }
}
