//! A small random model, its routing, and ways to serve it.

#![allow(dead_code, reason = "every test uses its part")]

pub(crate) mod fated;

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use expert_cache::Serving;
use moe_offload::{
    ExpertBank, ExpertShape, ExpertStore, HostStore, RandomExperts, ResidentExperts, Result, Routes, WeightType,
};
use moe_trace::{ExpertId, Geometry, LayerId, MemoryTrace, Phase, RoutingSource, SequenceBuf};

pub(crate) const SHAPE: ExpertShape = ExpertShape { layers: 3, experts: 8, hidden: 8, intermediate: 4 };
pub(crate) const TOP_K: usize = 2;

/// Numbers in -1..1 that look random.
pub(crate) fn noise(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((seed * 7919 + i * 104_729) as f32 * 12.9898).sin()).collect()
}

/// The next number of a generator that a seed starts.
pub(crate) fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*state >> 33).unwrap()
}

pub(crate) fn host_store(shape: ExpertShape) -> Arc<dyn ExpertStore> {
    Arc::new(HostStore::from_store(&RandomExperts::new(shape, WeightType::F32, 0).unwrap()).unwrap())
}

pub(crate) fn resident(store: &dyn ExpertStore) -> ResidentExperts {
    let shape = store.shape();
    let layer = |layer| {
        (0..).take(shape.experts).map(|expert| store.fetch(LayerId(layer), ExpertId(expert)).unwrap()).collect()
    };
    ResidentExperts::new((0..).take(shape.layers).map(layer).collect())
}

pub(crate) fn geometry() -> Geometry {
    Geometry::decoder(SHAPE.layers, SHAPE.experts, TOP_K).unwrap()
}

/// Routing with some locality: prompts of 1 to 5 tokens and decoded tokens in between.
pub(crate) fn trace(seed: u64, sequences: usize, tokens: usize) -> MemoryTrace {
    let mut state = seed;
    let mut trace = MemoryTrace::new(geometry());
    for _ in 0..sequences {
        let mut sequence = SequenceBuf::default();
        let mut weights = Vec::new();
        let mut last = [0; SHAPE.layers];
        for token in 0..tokens {
            for last in &mut last {
                if random(&mut state).is_multiple_of(3) {
                    *last = random(&mut state) % SHAPE.experts;
                }
                let other = (*last + 1 + random(&mut state) % (SHAPE.experts - 1)) % SHAPE.experts;
                sequence.experts.extend([*last, other].map(|expert| u16::try_from(expert).unwrap()));
                weights.extend([64, 0].map(|least| (least + random(&mut state) % 64) as f32 / 128.0));
            }
            let prompt = token < 1 + usize::try_from(seed).unwrap() % 5 || token.is_multiple_of(11);
            sequence.phases.push(if prompt { Phase::Prefill } else { Phase::Decode }.code());
        }
        sequence.weights = Some(weights);
        trace.push(sequence).unwrap();
    }
    trace
}

/// What a server does.
pub(crate) enum Step {
    /// Sends tokens of sequences through the model.
    Pass(Phase, Vec<(usize, usize)>),
    SequenceEnd,
}

/// The passes of a server, as [`Serving`] says.
pub(crate) fn steps(trace: &MemoryTrace, serving: Serving) -> Vec<Step> {
    let tokens = |(index, sequence): (usize, &SequenceBuf)| {
        sequence.phases.iter().enumerate().map(|(token, &phase)| (index, token, phase)).collect::<VecDeque<_>>()
    };
    let mut waiting: VecDeque<_> = trace.sequences().iter().enumerate().map(tokens).collect();
    let mut running: Vec<VecDeque<(usize, usize, u8)>> = Vec::new();
    let mut steps = Vec::new();
    while !running.is_empty() || !waiting.is_empty() {
        let room = serving.batch() - running.len();
        running.extend(waiting.drain(..room.min(waiting.len())));
        let take = |tokens: &mut VecDeque<(usize, usize, u8)>, phase: Phase, most: usize| {
            let mut pass = Vec::new();
            while pass.len() < most && tokens.front().is_some_and(|token| token.2 == phase.code()) {
                pass.extend(tokens.pop_front().map(|(sequence, token, _)| (sequence, token)));
            }
            pass
        };
        for tokens in &mut running {
            let prefill = take(tokens, Phase::Prefill, usize::MAX);
            if !prefill.is_empty() {
                steps.push(Step::Pass(Phase::Prefill, prefill));
            }
        }
        let decode: Vec<_> =
            running.iter_mut().flat_map(|tokens| take(tokens, Phase::Decode, serving.window())).collect();
        if !decode.is_empty() {
            steps.push(Step::Pass(Phase::Decode, decode));
        }
        let before = running.len();
        running.retain(|tokens| !tokens.is_empty());
        steps.extend((running.len()..before).map(|_| Step::SequenceEnd));
    }
    steps
}

/// Serves a trace and returns the bits of every layer's output.
pub(crate) fn serve(bank: &dyn ExpertBank, trace: &MemoryTrace, serving: Serving) -> Result<Vec<u32>> {
    let mut bits = Vec::new();
    for (number, step) in steps(trace, serving).iter().enumerate() {
        match step {
            Step::SequenceEnd => bank.sequence_end()?,
            Step::Pass(phase, tokens) => pass(bank, trace, (number, *phase, tokens), &mut bits)?,
        }
    }
    Ok(bits)
}

fn pass(
    bank: &dyn ExpertBank,
    trace: &MemoryTrace,
    (number, phase, tokens): (usize, Phase, &[(usize, usize)]),
    bits: &mut Vec<u32>,
) -> Result<()> {
    let width = SHAPE.hidden;
    let mut hidden = Tensor::from_vec(noise(number, tokens.len() * width), (tokens.len(), width), &Device::Cpu)?;
    for layer in trace.geometry().layer_ids() {
        let (mut experts, mut weights) = (Vec::new(), Vec::new());
        for &(sequence, token) in tokens {
            for (expert, weight) in trace.sequence(sequence).unwrap().weighted_experts(token, layer).unwrap() {
                experts.push(expert.0);
                weights.push(weight);
            }
        }
        let weights = Tensor::from_vec(weights, (tokens.len(), TOP_K), &Device::Cpu)?;
        hidden = bank.forward(layer, &hidden, &Routes::new(experts, weights, phase)?)?;
        bits.extend(hidden.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits));
    }
    Ok(())
}
