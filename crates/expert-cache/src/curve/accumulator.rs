//! Mean hit-rate curves over sequences.

use moe_trace::{Geometry, LayerId, Sequence};
use serde::{Deserialize, Serialize};

use super::{Accesses, ColdStart, CurvePolicy, accesses::check_layers, instructions::Instructions, pass::Pass};
use crate::{CacheError, Result};

/// Hit rates of one policy and one pool at every capacity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HitCurve {
    /// Entry `i` is the hit rate of `i + 1` slots, mean over sequences; all 0 if no sequence has an access.
    pub hit_rates: Vec<f64>,
    /// Number of sequences that have an access.
    pub sequences: u64,
    /// Number of accesses of all sequences.
    pub accesses: u64,
}

/// Sums hit-rate curves over sequences.
///
/// # Formula
/// `rate(c) = 1 / #sequences * sum over sequences of hits(c) / accesses`, sequences without accesses left out.
///
/// The state is integers: each sequence's rate is added as a multiple of `2^-64`, rounded down. So the result does not
/// depend on the order of sequences or on how they are split over accumulators, and is exact to `2^-63`.
///
/// # Complexity
/// LRU costs `O(pool / 64)` words a token and `O(1)` an access (pools of 65 to 256 experts: a vector of 64 bytes an
/// access for every 64 experts). Elsewhere an access costs `O(depth)`: 16 levels in one step where the processor has
/// AVX-512 or AVX2 and the priorities of the sequence fit 32 bits, one level a step otherwise, and in both cases blocks of
/// 64 levels that an access leaves as they are cost one step. Memory is `O(pool)`, and 4 bytes an access of the longest
/// sequence for Belady. Nothing is allocated for sequences no longer than earlier ones.
///
/// # References
/// arXiv 2505.16056, section 2.3 (SCH) and appendix C.1; Mattson et al. 1970 for the stack.
///
/// ```
/// use expert_cache::curve::{ColdStart, CurveAccumulator, CurvePolicy};
/// use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};
///
/// // One layer of 3 experts, top-1: A B C A.
/// let geometry = Geometry::decoder(1, 3, 1)?;
/// let sequence = SequenceBuf::from_experts(&geometry, vec![0, 1, 2, 0], Phase::Decode)?;
/// let curve = |policy, cold| -> Result<Vec<f64>, Box<dyn std::error::Error>> {
///     let mut curve = CurveAccumulator::new(&geometry, &[LayerId(0)], policy, cold)?;
///     curve.update(&sequence.view(&geometry, 0)?)?;
///     Ok(curve.finish().hit_rates)
/// };
/// // With two slots C must evict A or B: Belady keeps A, LRU does not.
/// assert_eq!(curve(CurvePolicy::Belady, ColdStart::Miss)?, [0.0, 0.25, 0.25]);
/// assert_eq!(curve(CurvePolicy::Lru, ColdStart::Miss)?, [0.0, 0.0, 0.25]);
/// // First touches are free while slots are empty: A with one slot, A and B with two, all with three.
/// assert_eq!(curve(CurvePolicy::Belady, ColdStart::Free)?, [0.25, 0.75, 1.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CurveAccumulator {
    layers: Vec<LayerId>,
    policy: CurvePolicy,
    cold_start: ColdStart,
    /// Sum over sequences of `hits / accesses * 2^64`, `[capacities]`.
    rates: Vec<u128>,
    sequences: u64,
    accesses: u64,
    pass: Pass,
    /// Hits of one sequence by depth.
    hits: Vec<u64>,
    scratch: Accesses,
}

impl CurveAccumulator {
    /// Creates the curve of a cache that the given layers share; for one layer give one, for a pool all.
    ///
    /// # Errors
    /// [`CacheError::LayerOutOfRange`], [`CacheError::Window`] for a look-ahead of no token.
    pub fn new(
        geometry: &Geometry,
        layers: &[LayerId],
        policy: CurvePolicy,
        cold_start: ColdStart,
    ) -> Result<CurveAccumulator> {
        CurveAccumulator::compiled(geometry, layers, policy, cold_start, Instructions::best())
    }

    /// The same curve for every set of instructions that this processor has, by name, the best first; for benches.
    #[doc(hidden)]
    pub fn by_instructions(
        geometry: &Geometry,
        layers: &[LayerId],
        policy: CurvePolicy,
        cold_start: ColdStart,
    ) -> Result<Vec<(&'static str, CurveAccumulator)>> {
        let compiled = |instructions: Instructions| {
            let curve = CurveAccumulator::compiled(geometry, layers, policy, cold_start, instructions)?;
            Ok((instructions.name(), curve))
        };
        Instructions::available().map(compiled).collect()
    }

    fn compiled(
        geometry: &Geometry,
        layers: &[LayerId],
        policy: CurvePolicy,
        cold_start: ColdStart,
        instructions: Instructions,
    ) -> Result<CurveAccumulator> {
        policy.check()?;
        check_layers(layers, geometry.layers())?;
        let pool = layers.len() * geometry.experts();
        Ok(CurveAccumulator {
            layers: layers.to_vec(),
            policy,
            cold_start,
            rates: vec![0; pool],
            sequences: 0,
            accesses: 0,
            pass: Pass::new(policy, pool, instructions),
            hits: vec![0; pool],
            scratch: Accesses::new(),
        })
    }

    /// The policy of the curve.
    pub fn policy(&self) -> CurvePolicy {
        self.policy
    }

    /// Sum over sequences of each capacity's hit rate, in multiples of `2^-64`: the exact state behind the curve.
    pub fn rate_sums(&self) -> &[u128] {
        &self.rates
    }

    /// Number of sequences that have an access.
    pub fn sequences(&self) -> u64 {
        self.sequences
    }

    /// Number of accesses of all sequences.
    pub fn accesses(&self) -> u64 {
        self.accesses
    }

    /// Adds a sequence, which starts cold.
    ///
    /// # Errors
    /// As [`Accesses::fill`]; [`CacheError::Universe`] if the sequence has another number of experts.
    pub fn update(&mut self, sequence: &Sequence<'_>) -> Result<()> {
        let mut accesses = std::mem::take(&mut self.scratch);
        let result = accesses.fill(sequence, &self.layers).and_then(|()| self.update_accesses(&accesses));
        self.scratch = accesses;
        result
    }

    /// Adds a sequence whose accesses to the pool are at hand, so that several curves can share them.
    ///
    /// # Errors
    /// [`CacheError::Universe`] if the accesses are over another number of experts.
    pub fn update_accesses(&mut self, accesses: &Accesses) -> Result<()> {
        let pool = self.rates.len();
        if accesses.pool() != pool {
            return Err(CacheError::Universe { found: accesses.pool(), expected: pool });
        }
        if accesses.is_empty() {
            return Ok(());
        }
        self.hits.fill(0);
        self.pass.run(accesses, self.cold_start, &mut self.hits);
        // One division a sequence: hits and accesses are below 2^32, so 32 more bits make up for the multiplication.
        let unit = (1u128 << 96) / accesses.len() as u128;
        let mut hits = 0;
        for (sum, &at_depth) in self.rates.iter_mut().zip(&self.hits) {
            hits += u128::from(at_depth);
            *sum += (hits * unit) >> 32;
        }
        self.sequences += 1;
        self.accesses += accesses.len() as u64;
        Ok(())
    }

    /// Adds the sequences of another accumulator.
    ///
    /// # Panics
    /// If the other was created for other layers, another policy or another cold start.
    pub fn merge(&mut self, other: &CurveAccumulator) {
        assert_eq!(
            (&self.layers, self.rates.len(), self.policy, self.cold_start),
            (&other.layers, other.rates.len(), other.policy, other.cold_start),
            "accumulators of different curves"
        );
        for (sum, more) in self.rates.iter_mut().zip(&other.rates) {
            *sum += more;
        }
        self.sequences += other.sequences;
        self.accesses += other.accesses;
    }

    /// Adds the state of another accumulator of the same curve, such as one of another process.
    ///
    /// # Panics
    /// If the other has another number of experts.
    pub fn add_sums(&mut self, rate_sums: &[u128], sequences: u64, accesses: u64) {
        assert_eq!(self.rates.len(), rate_sums.len(), "sums of another number of experts");
        self.rates.iter_mut().zip(rate_sums).for_each(|(sum, more)| *sum += more);
        self.sequences += sequences;
        self.accesses += accesses;
    }

    /// The curve of the sequences so far.
    pub fn finish(&self) -> HitCurve {
        // Rounds twice at 53 bits: to the nearest `f64` in the conversion and in the division.
        let scale = self.sequences.max(1) as f64 * 2f64.powi(64);
        HitCurve {
            hit_rates: self.rates.iter().map(|&sum| sum as f64 / scale).collect(),
            sequences: self.sequences,
            accesses: self.accesses,
        }
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{EMPTY_SLOT, Phase, SequenceBuf};
    use proptest::prelude::*;

    use super::*;
    use crate::curve::naive;

    const COLD_STARTS: [ColdStart; 2] = [ColdStart::Free, ColdStart::Miss];

    fn policies(window: usize) -> [CurvePolicy; 5] {
        use CurvePolicy::{Belady, BeladyBypass, Lfu, LookAhead, Lru};
        [Lru, Lfu, Belady, BeladyBypass, LookAhead { window }]
    }

    /// Token by token and layer by layer the first `k` of a shuffle of the experts, some slots emptied.
    fn sequence(geometry: &Geometry, tokens: usize) -> impl Strategy<Value = SequenceBuf> + use<> {
        let experts: Vec<u16> = geometry.expert_ids().map(|expert| expert.0).collect();
        let k = geometry.top_k();
        let row = (Just(experts).prop_shuffle(), proptest::collection::vec(prop::bool::weighted(0.1), k)).prop_map(
            |(experts, empty)| -> Vec<u16> {
                experts.iter().zip(empty).map(|(&expert, empty)| if empty { EMPTY_SLOT } else { expert }).collect()
            },
        );
        let geometry = geometry.clone();
        proptest::collection::vec(row, tokens * geometry.layers())
            .prop_map(move |rows| SequenceBuf::from_experts(&geometry, rows.concat(), Phase::Decode).unwrap())
    }

    fn trace() -> impl Strategy<Value = (Geometry, Vec<SequenceBuf>)> {
        let geometry = (1usize..=3, 1usize..=30)
            .prop_flat_map(|(layers, experts)| (Just(layers), Just(experts), 1..=experts.min(5)))
            .prop_map(|(layers, experts, k)| Geometry::decoder(layers, experts, k).unwrap());
        geometry.prop_flat_map(|geometry| {
            let sequences = proptest::collection::vec(
                (0usize..25).prop_flat_map({
                    let geometry = geometry.clone();
                    move |tokens| sequence(&geometry, tokens)
                }),
                0..4,
            );
            (Just(geometry), sequences)
        })
    }

    fn naive_curve(
        geometry: &Geometry,
        sequences: &[SequenceBuf],
        layers: &[LayerId],
        curve: &CurveAccumulator,
    ) -> HitCurve {
        let mut accesses = Accesses::new();
        let mut all = HitCurve { hit_rates: vec![0.0; curve.rates.len()], sequences: 0, accesses: 0 };
        for sequence in sequences {
            accesses.fill(&sequence.view(geometry, 0).unwrap(), layers).unwrap();
            if accesses.is_empty() {
                continue;
            }
            all.sequences += 1;
            all.accesses += accesses.len() as u64;
            for (rate, hits) in all.hit_rates.iter_mut().zip(naive::hits(&accesses, curve.policy, curve.cold_start)) {
                *rate += hits as f64 / accesses.len() as f64;
            }
        }
        all.hit_rates.iter_mut().for_each(|rate| *rate /= all.sequences.max(1) as f64);
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Every policy and cold start, one layer and a pool of all, agrees with simulating each capacity alone.
        #[test]
        fn one_pass_equals_one_simulation_a_capacity((geometry, sequences) in trace(), window in 1usize..40) {
            let all: Vec<LayerId> = geometry.layer_ids().collect();
            for layers in [&all[..1], &all[..]] {
                for policy in policies(window) {
                    for cold in COLD_STARTS {
                        let mut curve = CurveAccumulator::new(&geometry, layers, policy, cold).unwrap();
                        for sequence in &sequences {
                            curve.update(&sequence.view(&geometry, 0).unwrap()).unwrap();
                        }
                        let (fast, slow) = (curve.finish(), naive_curve(&geometry, &sequences, layers, &curve));
                        prop_assert_eq!((fast.sequences, fast.accesses), (slow.sequences, slow.accesses));
                        for (fast, slow) in fast.hit_rates.iter().zip(&slow.hit_rates) {
                            prop_assert!((fast - slow).abs() < 1e-12, "{policy:?} {cold:?}: {fast} against {slow}");
                        }
                    }
                }
            }
        }

        /// Merging parts in any order gives the same bits as one accumulator.
        #[test]
        fn merge_is_exact((geometry, sequences) in trace(), cut in 0usize..4) {
            let layers: Vec<LayerId> = geometry.layer_ids().collect();
            for policy in policies(3) {
                let of = |sequences: &[SequenceBuf]| {
                    let mut curve = CurveAccumulator::new(&geometry, &layers, policy, ColdStart::Free).unwrap();
                    for sequence in sequences {
                        curve.update(&sequence.view(&geometry, 0).unwrap()).unwrap();
                    }
                    curve
                };
                let (left, right) = sequences.split_at(cut.min(sequences.len()));
                let (whole, left, mut merged) = (of(&sequences), of(left), of(right));
                merged.merge(&left);
                prop_assert_eq!(merged.finish(), whole.finish());
            }
        }
    }

    #[test]
    fn lru_of_a_pool_above_64_experts_equals_the_definition() {
        let geometry = Geometry::decoder(2, 40, 4).unwrap();
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            u16::try_from(state >> 60).unwrap()
        };
        let rows = (0..200).flat_map(|_| [0, 10, 20, 30].map(|first| first + next() % 10));
        let sequences = [SequenceBuf::from_experts(&geometry, rows.collect(), Phase::Decode).unwrap()];
        let layers: Vec<LayerId> = geometry.layer_ids().collect();
        let mut curve = CurveAccumulator::new(&geometry, &layers, CurvePolicy::Lru, ColdStart::Free).unwrap();
        curve.update(&sequences[0].view(&geometry, 0).unwrap()).unwrap();
        assert_eq!(curve.finish(), naive_curve(&geometry, &sequences, &layers, &curve));
    }

    #[test]
    fn bad_arguments_name_value_and_limit() {
        let geometry = Geometry::decoder(2, 4, 1).unwrap();
        let message = |layer, policy| {
            CurveAccumulator::new(&geometry, &[LayerId(layer)], policy, ColdStart::Free).unwrap_err().to_string()
        };
        assert_eq!(message(2, CurvePolicy::Lru), "layer 2 is out of range, the trace has 2 MoE layers");
        let no_window = CurvePolicy::LookAhead { window: 0 };
        assert_eq!(message(0, no_window), "look-ahead window is 0 tokens, it must be at least 1");
        let mut curve = CurveAccumulator::new(&geometry, &[LayerId(0)], CurvePolicy::Lru, ColdStart::Free).unwrap();
        let other = Geometry::decoder(1, 5, 1).unwrap();
        let sequence = SequenceBuf::from_experts(&other, vec![4], Phase::Decode).unwrap();
        let error = curve.update(&sequence.view(&other, 0).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "the set is over 5 experts, the cache over 4");
    }
}
