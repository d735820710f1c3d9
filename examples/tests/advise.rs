//! What the time model and the advisor say of the default model, beside what the runtime does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use candle_core::{DType, Device};
use expert_cache::{
    Advisor, Choices, CostModel, ExpertCache, Layout, Linear, Lru, Overlap, Oversize, Partition, PolicyKind,
    Simulation, Slots, Target, Timeline, Verdict,
};
use moe_model::{Checkpoint, GenerateOptions, Olmoe, Sampling, generate};
use moe_offload::{
    ExpertBank, ExpertStore, HostStore, LayerCounters, MappedStore, OffloadOptions, OffloadedExperts, WeightType,
};
use moe_trace::{MemoryTrace, Recorder};

const PROMPT: &str = "def main():\n    import os\n    return";

/// Continues the prompt, and returns the routing.
fn serve(checkpoint: &Checkpoint, bank: Arc<dyn ExpertBank>) -> MemoryTrace {
    let vb = checkpoint.var_builder(DType::F32, &Device::Cpu).unwrap();
    let model = Olmoe::new(checkpoint.config(), &vb, bank).unwrap();
    let mut recorder = Recorder::new(MemoryTrace::new(checkpoint.config().geometry()));
    let prompt = checkpoint.tokenizer().unwrap().encode(PROMPT).unwrap();
    let options =
        GenerateOptions { max_new_tokens: 24, sampler: Sampling::Greedy, seeds: Vec::new(), stop_tokens: Vec::new() };
    generate(&model, &[prompt], &options, &mut recorder, |_, _| ()).unwrap();
    recorder.finish().unwrap()
}

/// Where a load takes a second and all else nothing, the predicted seconds are the loads that the runtime counts.
#[test]
fn predicted_seconds_are_the_loads_of_the_runtime() {
    let checkpoint = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/default")).unwrap();
    let (geometry, shape) = (checkpoint.config().geometry(), checkpoint.config().expert_shape());
    let names = |layer, expert| checkpoint.expert_locations(layer, expert);
    let mapped = MappedStore::open(checkpoint.files(), shape, DType::F32, names).unwrap();
    let store: Arc<dyn ExpertStore> = Arc::new(HostStore::from_store(&mapped).unwrap());
    let (capacity, experts) = (2 * geometry.top_k(), geometry.experts());
    let bank = OffloadedExperts::new(store, &Device::Cpu, OffloadOptions::slots(capacity)).unwrap();
    let bank = Arc::new(bank);
    let trace = serve(&checkpoint, bank.clone());

    let caches = geometry.layer_ids().map(|_| ExpertCache::new(Lru::new(experts), experts, capacity, Oversize::Waves));
    let caches = caches.collect::<Result<_, _>>().unwrap();
    let mut simulation = Simulation::of_pools(Partition::per_layer(&geometry).into_pools(), caches).unwrap();
    let costs = CostModel::loads(vec![1.0; geometry.layers()], Overlap::None);
    let mut timeline = Timeline::new(costs.clone(), simulation.pools()).unwrap();
    simulation
        .observe(&trace, |served| {
            timeline.serve(served);
        })
        .unwrap();
    let counters = bank.counters().unwrap();
    let speed = timeline.speed();
    let loads = |of: fn(&LayerCounters) -> u64| counters.iter().map(of).sum::<u64>() as f64;
    assert_eq!(speed.prefill.exposed_seconds, loads(|layer| layer.prefill.counts.loads));
    assert_eq!(speed.decode.exposed_seconds, loads(|layer| layer.decode.counts.loads));
    assert!(speed.decode.exposed_seconds > 0.0);

    // Half a load a token and layer is allowed; a smaller cache than the answer is slower.
    let costs = CostModel { device_expert: Linear { call_seconds: 0.01, seconds_each: 0.0 }, ..costs };
    let choices = Choices {
        policies: vec![PolicyKind::Lru, PolicyKind::Belady],
        layouts: vec![Layout::Uniform],
        ..Choices::default()
    };
    let bytes = vec![shape.expert_bytes(WeightType::F32) as u64; geometry.layers()];
    let survey = Advisor::new(&trace, costs, bytes, choices).unwrap().survey(&|_, _| ()).unwrap();
    let Verdict::Met { best } = survey.answer(Target::TokensPerSecond(0.5), None).unwrap() else { panic!() };
    let Slots::PerLayer(slots) = &survey.candidates[best].setup.slots else { panic!() };
    assert!(slots[0] > 1 && slots[0] < experts, "{slots:?}");
    let smaller = survey.candidates.iter().filter(|one| one.setup.is_online());
    let smaller = smaller.filter(|one| one.setup.bytes < survey.candidates[best].setup.bytes);
    assert!(smaller.clone().count() == slots[0] - 1);
    assert!(smaller.into_iter().all(|one| one.speed.decode.tokens_per_second() < 0.5));
}
