//! Recorded routing through banks: equal outputs, counts as simulated.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use expert_cache::{ExpertCache, Oversize, Partition, PolicyKind, PoolShape, Serving, Simulation};
use moe_offload::{
    ExpertShape, ExpertStore, ExpertWeights, OffloadOptions, OffloadedExperts, Replay, ResidentExperts, Result,
    WeightType,
};
use moe_trace::{EMPTY_SLOT, ExpertId, Geometry, LayerId, MemoryTrace, Phase, SequenceBuf};

const SHAPE: ExpertShape = ExpertShape { layers: 3, experts: 8, hidden: 16, intermediate: 8 };

/// Experts of numbers that look random.
#[derive(Debug)]
struct Experts;

impl ExpertStore for Experts {
    fn shape(&self) -> ExpertShape {
        SHAPE
    }

    fn weight_type(&self) -> WeightType {
        WeightType::F32
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        let seed = layer.index() * 100 + expert.index() * 10;
        let [gate, up, down] = [0, 1, 2].map(|which| {
            let dims = SHAPE.projections()[which];
            let value = |i: usize| (((seed + which) * 7919 + i * 104_729) as f32 * 12.9898).sin();
            Tensor::from_vec((0..dims.0 * dims.1).map(value).collect(), dims, &Device::Cpu)
        });
        ExpertWeights::new(gate?, up?, down?)
    }
}

/// Two conversations of two turns each; a token now and then uses one expert instead of two.
fn trace() -> MemoryTrace {
    let geometry = Geometry::decoder(SHAPE.layers, SHAPE.experts, 2).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone());
    for sequence in 0..2u16 {
        let mut routing = SequenceBuf::default();
        for token in 0..30u16 {
            for layer in 0..3 {
                let first = (token / 4 + 3 * layer + sequence) % 8;
                let second = if token % 7 == 3 { EMPTY_SLOT } else { (first + 1 + token % 3) % 8 };
                routing.experts.extend([first, second]);
            }
            let prompt = token < 9 || (18..21).contains(&token);
            routing.phases.push(if prompt { Phase::Prefill } else { Phase::Decode }.code());
        }
        trace.push(routing).unwrap();
    }
    trace
}

#[test]
fn banks_agree_and_count_as_simulated_however_sequences_are_served() {
    let trace = trace();
    let layers = (0..3).map(|layer| (0..8).map(move |expert| Experts.fetch(LayerId(layer), ExpertId(expert)).unwrap()));
    let resident = ResidentExperts::new(layers.map(Iterator::collect).collect());
    for serving in [Serving::default(), Serving::new(2, 1).unwrap(), Serving::new(2, 3).unwrap()] {
        let replay = Replay::new(&trace, SHAPE.hidden, DType::F32, &Device::Cpu).unwrap().with_serving(serving);
        let mut seen = 0;
        let expected = replay.run(&resident, |pass| seen += pass.tokens).unwrap();
        assert_eq!((expected.prefill.tokens, expected.decode.tokens, seen), (24, 36, 60));
        for capacity in [1, 3, 8] {
            let policy = |_| PolicyKind::Lru.build(PoolShape { layers: 1, experts: 8 }, capacity, None);
            let bank = OffloadedExperts::new(Arc::new(Experts), &Device::Cpu, OffloadOptions::slots(capacity)).unwrap();
            assert_eq!(replay.run(&bank, |_| ()).unwrap().checksum, expected.checksum);
            let geometry = Geometry::decoder(3, 8, 2).unwrap();
            let caches =
                (0..3).map(|layer| ExpertCache::new(policy(LayerId(layer)).unwrap(), 8, capacity, Oversize::Waves));
            let caches = caches.collect::<expert_cache::Result<_>>().unwrap();
            let pools = Partition::per_layer(&geometry).into_pools();
            let mut simulation = Simulation::of_pools(pools, caches).unwrap().with_serving(serving);
            simulation.run(&trace).unwrap();
            for (counters, counts) in bank.counters().unwrap().iter().zip(simulation.counts()) {
                assert_eq!(counters.counts(), *counts);
            }
        }
    }
}

#[test]
fn traces_of_other_models_are_told() {
    let geometry = Geometry::decoder(1, 9, 1).unwrap();
    let mut trace = MemoryTrace::new(geometry.clone());
    trace.push(SequenceBuf::from_experts(&geometry, vec![1, 8], Phase::Decode).unwrap()).unwrap();
    let bank = OffloadedExperts::new(Arc::new(Experts), &Device::Cpu, OffloadOptions::slots(2)).unwrap();
    let replay = Replay::new(&trace, SHAPE.hidden, DType::F32, &Device::Cpu).unwrap();
    let error = replay.run(&bank, |_| ()).unwrap_err().to_string();
    assert_eq!(error, "layer 0, token 0: expert 8 is out of range, the layer has 8");
    assert!(Replay::new(&trace, 0, DType::F32, &Device::Cpu).is_err());
}
