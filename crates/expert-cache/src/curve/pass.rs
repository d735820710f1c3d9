//! One pass over one sequence.

use super::{
    Accesses, ColdStart, CurvePolicy,
    instructions::Instructions,
    last_uses::LastUses,
    ranking::{Frequency, NextUse, Ranking, WindowUses},
    recency::Recency,
    recency_matrix::RecencyMatrix,
    stack::{BlockStack, Stack},
};
#[cfg(target_arch = "x86_64")]
use super::{
    lanes::{Lanes, PRIORITIES},
    lanes_avx2::Avx2,
    lanes_avx512::Avx512,
    stack_simd::LaneStack,
    stack_wide::WideStack,
};

/// The state of a policy, kept between sequences only for its memory.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    state: State,
    instructions: Instructions,
}

#[derive(Clone, Debug)]
enum State {
    /// LRU of at most 64 experts.
    Lru64(Box<RecencyMatrix>),
    /// LRU of at most 64 experts without wide vectors.
    LruNarrow64(Recency<1>),
    /// LRU of at most 128 experts.
    Lru128(Recency<2>),
    /// LRU of at most 256 experts.
    Lru256(Box<Recency<4>>),
    /// LRU of larger pools.
    Lru(LastUses),
    Lfu(Stacks, Frequency),
    Belady(Stacks, NextUse<false>),
    BeladyBypass(Stacks, NextUse<true>),
    LookAhead(Stacks, WindowUses),
}

/// The stacks that a pass may use.
#[derive(Clone, Debug)]
struct Stacks {
    portable: BlockStack,
    /// For priorities that fit a lane.
    #[cfg(target_arch = "x86_64")]
    wide: Option<Wide>,
}

#[cfg(target_arch = "x86_64")]
#[derive(Clone, Debug)]
enum Wide {
    Avx512(WideStack<Avx512>),
    Avx2(WideStack<Avx2>),
}

impl Stacks {
    fn new(instructions: Instructions) -> Stacks {
        Stacks {
            portable: BlockStack::default(),
            #[cfg(target_arch = "x86_64")]
            wide: match instructions {
                Instructions::Avx512(lanes) => Some(Wide::Avx512(WideStack::new(lanes))),
                Instructions::Avx2(lanes) => Some(Wide::Avx2(WideStack::new(lanes))),
                Instructions::Portable => None,
            },
        }
    }
}

impl Pass {
    pub(super) fn new(policy: CurvePolicy, pool: usize, instructions: Instructions) -> Pass {
        let stack = Stacks::new(instructions);
        let narrow = matches!(instructions, Instructions::Portable);
        let state = match policy {
            CurvePolicy::Lru if pool <= RecencyMatrix::EXPERTS && !narrow => {
                State::Lru64(Box::new(RecencyMatrix::new()))
            }
            CurvePolicy::Lru if pool <= Recency::<1>::EXPERTS => State::LruNarrow64(Recency::new()),
            CurvePolicy::Lru if pool <= Recency::<2>::EXPERTS => State::Lru128(Recency::new()),
            CurvePolicy::Lru if pool <= Recency::<4>::EXPERTS && !narrow => State::Lru256(Box::new(Recency::new())),
            CurvePolicy::Lru => State::Lru(LastUses::default()),
            CurvePolicy::Lfu => State::Lfu(stack, Frequency::default()),
            CurvePolicy::Belady => State::Belady(stack, NextUse::default()),
            CurvePolicy::BeladyBypass => State::BeladyBypass(stack, NextUse::default()),
            CurvePolicy::LookAhead { window } => State::LookAhead(stack, WindowUses::new(window)),
        };
        Pass { state, instructions }
    }

    /// Serves a sequence from a cold cache; an access that hits at capacities above `d` adds 1 to `hits[d]`.
    pub(super) fn run(&mut self, accesses: &Accesses, cold: ColdStart, hits: &mut [u64]) {
        let instructions = self.instructions;
        let distinct = match &mut self.state {
            State::Lru64(matrix) => instructions.vectorize(
                #[inline(always)]
                || run_matrix(matrix, accesses, hits),
            ),
            State::LruNarrow64(recency) => instructions.vectorize(
                #[inline(always)]
                || run_recency(recency, accesses, hits),
            ),
            State::Lru128(recency) => instructions.vectorize(
                #[inline(always)]
                || run_recency(recency, accesses, hits),
            ),
            State::Lru256(recency) => instructions.vectorize(
                #[inline(always)]
                || run_recency(recency, accesses, hits),
            ),
            State::Lru(last_uses) => instructions.vectorize(
                #[inline(always)]
                || run_last_uses(last_uses, accesses, hits),
            ),
            State::Lfu(stack, ranking) => run_ranked(stack, ranking, accesses, hits),
            State::Belady(stack, ranking) => run_ranked(stack, ranking, accesses, hits),
            State::BeladyBypass(stack, ranking) => run_ranked(stack, ranking, accesses, hits),
            State::LookAhead(stack, ranking) => run_ranked(stack, ranking, accesses, hits),
        };
        if cold == ColdStart::Free {
            // The first touch of the expert that is the `i`th to be seen hits at capacities of at least `i`.
            hits[..distinct].iter_mut().for_each(|hits| *hits += 1);
        }
    }
}

// Each of the following serves a sequence, adds to the hits of experts seen before, and returns how many were seen.

#[inline(always)]
fn run_matrix(matrix: &mut RecencyMatrix, accesses: &Accesses, hits: &mut [u64]) -> usize {
    matrix.reset();
    // Depths fit a byte, so no index is out of bounds.
    let mut at_depth = [0u32; 256];
    let mut distinct = 0;
    for keys in accesses.tokens() {
        matrix.serve(keys, |depth| at_depth[depth & 255] += 1, || distinct += 1);
    }
    hits.iter_mut().zip(at_depth).for_each(|(hits, more)| *hits += u64::from(more));
    distinct
}

#[inline(always)]
fn run_recency<const C: usize>(recency: &mut Recency<C>, accesses: &Accesses, hits: &mut [u64]) -> usize {
    recency.reset();
    let mut at_depth = [0u32; 256];
    let mut distinct = 0;
    for keys in accesses.tokens() {
        recency.serve(keys, |depth| at_depth[depth & 255] += 1, || distinct += 1);
    }
    hits.iter_mut().zip(at_depth).for_each(|(hits, more)| *hits += u64::from(more));
    distinct
}

#[inline(always)]
fn run_last_uses(last_uses: &mut LastUses, accesses: &Accesses, hits: &mut [u64]) -> usize {
    last_uses.reset(accesses.pool(), accesses.len());
    let mut distinct = 0;
    for keys in accesses.tokens() {
        last_uses.serve(keys, |depth| hits[depth] += 1, || distinct += 1);
    }
    distinct
}

fn run_ranked(stacks: &mut Stacks, ranking: &mut impl Ranking, accesses: &Accesses, hits: &mut [u64]) -> usize {
    let bound = ranking.start(accesses);
    #[cfg(target_arch = "x86_64")]
    if bound <= PRIORITIES {
        match &mut stacks.wide {
            Some(Wide::Avx512(wide)) => return run_lanes(wide, ranking, accesses, hits),
            Some(Wide::Avx2(wide)) => return run_lanes(wide, ranking, accesses, hits),
            None => {}
        }
    }
    stacks.portable.reset(accesses.pool());
    run_stack(&mut stacks.portable, ranking, accesses, hits)
}

#[cfg(target_arch = "x86_64")]
fn run_lanes<L: Lanes>(
    wide: &mut WideStack<L>,
    ranking: &mut impl Ranking,
    accesses: &Accesses,
    hits: &mut [u64],
) -> usize {
    let (lanes, pool) = (wide.lanes(), accesses.pool());
    lanes.vectorize(
        #[inline(always)]
        || {
            if pool <= LaneStack::<L, 4>::EXPERTS {
                run_stack(&mut LaneStack::<L, 4>::new(lanes), ranking, accesses, hits)
            } else if pool <= LaneStack::<L, 8>::EXPERTS {
                run_stack(&mut LaneStack::<L, 8>::new(lanes), ranking, accesses, hits)
            } else {
                wide.reset(pool);
                run_stack(wide, ranking, accesses, hits)
            }
        },
    )
}

#[inline(always)]
fn run_stack<R: Ranking>(stack: &mut impl Stack, ranking: &mut R, accesses: &Accesses, hits: &mut [u64]) -> usize {
    let (mut distinct, mut access) = (0, 0);
    for (token, keys) in accesses.tokens().enumerate() {
        stack.judge(keys, |depth| hits[depth] += 1, || distinct += 1);
        stack.raise(ranking.rising(accesses, token), ranking.one_use());
        if R::BYPASS {
            (access..).zip(keys).for_each(|(access, &key)| stack.rank(key, ranking.served(access, key)));
        }
        for &key in keys {
            let priority = ranking.served(access, key);
            if R::BYPASS {
                stack.sink(key, priority)
            } else {
                stack.serve(key, priority)
            }
            access += 1;
        }
    }
    distinct
}

#[cfg(test)]
mod tests {
    use moe_trace::{Geometry, LayerId, Phase, SequenceBuf};
    use proptest::prelude::*;

    use super::*;
    use crate::curve::naive;

    fn accesses(geometry: &Geometry, experts: Vec<u16>) -> Accesses {
        let sequence = SequenceBuf::from_experts(geometry, experts, Phase::Decode).unwrap();
        let layers: Vec<LayerId> = geometry.layer_ids().collect();
        let mut accesses = Accesses::new();
        accesses.fill(&sequence.view(geometry, 0).unwrap(), &layers).unwrap();
        accesses
    }

    /// Tokens of `top_k` experts a layer, every other draw among a few favourites that are spread over the pool.
    fn skewed(layers: usize, experts: usize, top_k: usize, tokens: usize) -> impl Strategy<Value = Accesses> {
        let draws = proptest::collection::vec(any::<[u16; 2]>(), layers * top_k * tokens);
        draws.prop_map(move |draws| {
            let mut ids: Vec<u16> = Vec::new();
            for draws in draws.chunks(top_k) {
                let row = ids.len();
                for &[coin, draw] in draws {
                    let span = if coin % 2 == 0 { experts.min(12) } else { experts };
                    let mut expert = usize::from(draw) % span * 37 % experts;
                    while ids[row..].iter().any(|&id| usize::from(id) == expert) {
                        expert = (expert + 1) % experts;
                    }
                    ids.push(u16::try_from(expert).unwrap());
                }
            }
            accesses(&Geometry::decoder(layers, experts, top_k).unwrap(), ids)
        })
    }

    fn hits(accesses: &Accesses, policy: CurvePolicy, cold: ColdStart, instructions: Instructions) -> Vec<u64> {
        let mut hits = vec![0; accesses.pool()];
        Pass::new(policy, accesses.pool(), instructions).run(accesses, cold, &mut hits);
        hits.iter()
            .scan(0, |sum, hits| {
                *sum += hits;
                Some(*sum)
            })
            .collect()
    }

    fn policies(window: usize) -> [CurvePolicy; 5] {
        [
            CurvePolicy::Lru,
            CurvePolicy::Lfu,
            CurvePolicy::Belady,
            CurvePolicy::BeladyBypass,
            CurvePolicy::LookAhead { window },
        ]
    }

    /// Pools on both sides of every limit: one register of levels, 64, 128, 256, blocks of 64 levels.
    fn pools() -> impl Strategy<Value = (usize, usize)> {
        let one_layer = [1, 15, 17, 63, 64, 65, 256, 257].map(|experts| (1, experts));
        prop::sample::select([one_layer.as_slice(), &[(2, 64), (3, 43), (5, 60)]].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_path_equals_the_definition(
            accesses in (pools(), 1usize..9, 1usize..25).prop_flat_map(|((layers, experts), top_k, tokens)| {
                skewed(layers, experts, top_k.min(experts), tokens)
            }),
            window in 1usize..30,
            cold in prop::sample::select(vec![ColdStart::Free, ColdStart::Miss]),
        ) {
            for policy in policies(window) {
                let expected = naive::hits(&accesses, policy, cold);
                for instructions in Instructions::available() {
                    prop_assert_eq!(&hits(&accesses, policy, cold, instructions), &expected, "{:?}", (policy, instructions));
                }
            }
        }

        /// Times of last use are numbered anew when they run out.
        #[test]
        fn lru_of_a_large_pool_equals_the_definition_for_long_sequences(accesses in skewed(3, 90, 8, 80)) {
            for instructions in Instructions::available() {
                let fast = hits(&accesses, CurvePolicy::Lru, ColdStart::Miss, instructions);
                prop_assert_eq!(fast, naive::hits(&accesses, CurvePolicy::Lru, ColdStart::Miss));
            }
        }

        /// Sequences of usual length, where the definition is slow.
        #[test]
        fn all_instructions_agree(
            accesses in prop::sample::select(vec![60usize, 64, 100, 128, 250, 400])
                .prop_flat_map(|experts| skewed(1, experts, 8, 400)),
            window in 1usize..300,
        ) {
            for policy in policies(window) {
                let portable = hits(&accesses, policy, ColdStart::Free, Instructions::Portable);
                for instructions in Instructions::available() {
                    let fast = hits(&accesses, policy, ColdStart::Free, instructions);
                    prop_assert_eq!(&fast, &portable, "{:?}", (policy, instructions));
                }
            }
        }
    }

    #[test]
    fn priorities_wider_than_a_lane_equal_the_definition() {
        // 70,000 uses and 70,000 times of last use take 17 bits each.
        let mut state = 1u32;
        let ids = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Expert 3 more often than 2, that than 1, that than 0.
            u16::try_from((state >> 28).max(1).ilog2()).unwrap()
        });
        let accesses = accesses(&Geometry::decoder(1, 4, 1).unwrap(), ids.take(70_000).collect());
        for instructions in Instructions::available() {
            let fast = hits(&accesses, CurvePolicy::Lfu, ColdStart::Miss, instructions);
            assert_eq!(fast, naive::hits(&accesses, CurvePolicy::Lfu, ColdStart::Miss));
        }
    }
}
