//! Random traces, and what every accumulator must do with them.

use std::fmt::Debug;
use std::sync::LazyLock;

use lrc_metrics::{Accumulator, SrpValue, accumulate, oracle};
use moe_trace::{
    DomainId, EMPTY_SLOT, Geometry, LayerId, MemoryTrace, MoeLayer, Phase, RoutingSource, SequenceBuf, SequenceStream,
    Stack, Synthetic, SyntheticOptions,
};
use proptest::prelude::*;
use rayon::ThreadPool;
use serde::{Serialize, de::DeserializeOwned};

/// Number of domains of a random trace.
pub(crate) const DOMAINS: usize = 3;
/// Token ids of a random trace are below this.
pub(crate) const TOKENS: u32 = 5;

static POOLS: LazyLock<[ThreadPool; 2]> =
    LazyLock::new(|| [1, 3].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()));

pub(crate) fn memory(geometry: &Geometry, sequences: Vec<SequenceBuf>) -> MemoryTrace {
    let mut trace = MemoryTrace::new(geometry.clone()).with_domains(["code", "prose", "speech"]);
    sequences.into_iter().for_each(|sequence| trace.push(sequence).unwrap());
    trace
}

/// Sequences of so many tokens each.
pub(crate) fn synthetic(geometry: &Geometry, sequences: usize, tokens: usize, seed: u64) -> MemoryTrace {
    let dials = SyntheticOptions { sequences, tokens, seed, ..SyntheticOptions::default() };
    Synthetic::new(geometry.clone(), dials).collect().unwrap()
}

/// One to four sequences of up to 30 tokens in a trace of up to 2 layers and 6 experts, some slots empty, the first layer
/// in the encoder or in the decoder, domains of some sequences and ids of all tokens known.
pub(crate) fn trace() -> impl Strategy<Value = MemoryTrace> {
    let geometry = (1usize..=2, 1usize..=6, any::<bool>())
        .prop_flat_map(|(layers, experts, encoder)| (Just(layers), Just(experts), 1..=experts.min(3), Just(encoder)))
        .prop_map(|(layers, experts, k, encoder)| {
            let mut all = vec![MoeLayer { model_layer: 0, stack: Stack::Decoder }; layers];
            all[0].stack = if encoder { Stack::Encoder } else { Stack::Decoder };
            Geometry::new(all, experts, k).unwrap()
        });
    geometry.prop_flat_map(|geometry| {
        let sequence = sequence(&geometry, 0..30);
        proptest::collection::vec(sequence, 1..5).prop_map(move |sequences| memory(&geometry, sequences))
    })
}

/// A sequence of some tokens.
pub(crate) fn sequence(
    geometry: &Geometry,
    tokens: std::ops::Range<usize>,
) -> impl Strategy<Value = SequenceBuf> + use<> {
    let (k, layers, geometry) = (geometry.top_k(), geometry.layers(), geometry.clone());
    let experts: Vec<u16> = geometry.expert_ids().map(|expert| expert.0).collect();
    let row = (Just(experts).prop_shuffle(), proptest::collection::vec(prop::bool::weighted(0.15), k)).prop_map(
        |(experts, empty)| -> Vec<u16> {
            experts.iter().zip(empty).map(|(&expert, empty)| if empty { EMPTY_SLOT } else { expert }).collect()
        },
    );
    let token = (proptest::collection::vec(row, layers), 0..TOKENS);
    let domain = prop::option::weighted(0.8, 0..u16::try_from(DOMAINS).unwrap());
    (proptest::collection::vec(token, tokens), domain).prop_map(move |(tokens, domain)| {
        let (rows, ids): (Vec<_>, Vec<_>) = tokens.into_iter().unzip();
        let mut sequence = SequenceBuf::from_experts(&geometry, rows.concat().concat(), Phase::Prefill).unwrap();
        sequence.token_ids = Some(ids);
        sequence.domain = domain.map(DomainId);
        sequence
    })
}

/// Histogram of window counts of one expert, by looking at every token of every window.
pub(crate) fn naive_counts(trace: &dyn RoutingSource, layer: LayerId, expert: usize, window: usize) -> Vec<u64> {
    let mut counts = vec![0; window + 1];
    for index in 0..trace.len() {
        let sequence = trace.sequence(index).unwrap();
        let more = oracle::window_counts(&sequence, layer, u16::try_from(expert).unwrap(), window);
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
    }
    counts
}

/// Asserts that a value is the best F1 over all thresholds, each computed from scratch.
pub(crate) fn agrees(value: &SrpValue, counts: &[u64]) {
    let (srp, threshold, rho) = oracle::best_threshold(counts);
    assert_eq!(value.threshold, threshold, "{counts:?}");
    assert!((value.srp - srp).abs() < 1e-12 && (value.rho - rho).abs() < 1e-12, "{value:?} for {counts:?}");
    let windows: u64 = counts.iter().sum();
    let uses: u64 = (0..).zip(counts).map(|(uses, count)| uses * count).sum();
    let activation_rate = uses as f64 / ((counts.len() as u64 - 1) * windows) as f64;
    assert!((value.activation_rate - activation_rate).abs() < 1e-12);
}

/// Asserts that every split and order of the sequences, every number of threads and every detour over bytes gives the
/// same bits.
pub(crate) fn every_fold_agrees<A: Accumulator + Serialize + DeserializeOwned, R: PartialEq + Debug>(
    trace: &MemoryTrace,
    empty: &A,
    finish: impl Fn(&A) -> R,
) {
    let (mut whole, mut parts) = (empty.clone(), [empty.clone(), empty.clone(), empty.clone()]);
    for index in 0..trace.len() {
        let sequence = trace.sequence(index).unwrap();
        whole.update(&sequence).unwrap();
        parts[(index * 2 + trace.sequences()[0].phases.len()) % 3].update(&sequence).unwrap();
    }
    let expected = finish(&whole);
    let mut merged = empty.clone();
    for part in parts.iter().rev() {
        let part: A = serde_json::from_str(&serde_json::to_string(part).unwrap()).unwrap();
        merged.merge(&part).unwrap();
    }
    assert_eq!(finish(&merged), expected);
    for pool in POOLS.iter() {
        let folded = pool.install(|| accumulate(trace, empty, &|_| {}).unwrap());
        assert_eq!(finish(&folded), expected);
    }
}
