//! The promises of the workspace on its trained default model: offloading changes no bit, and the runtime's hits are the
//! simulator's, for every policy.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use candle_core::{DType, Device};
use expert_cache::{ExpertCache, Oversize, PolicyKind, Pool, Requests, Simulation};
use moe_model::{Checkpoint, Chunk, GenerateOptions, KvCache, LogitsAt, Olmoe, Sampling, generate};
use moe_offload::{Exactness, ExpertBank, ExpertStore, HostStore, MappedStore, OffloadOptions, OffloadedExperts};
use moe_trace::{MemoryTrace, Phase, Recorder, RouterObserver};

const PROMPTS: [&str; 2] = ["def main():\n    import os\n    return", "The file is opened for reading"];

struct Fixture {
    checkpoint: Checkpoint,
    /// Prompt and new tokens of each sequence, and the prompt's length.
    sequences: Vec<(Vec<u32>, usize)>,
}

fn fixture() -> Fixture {
    let checkpoint = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/default")).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let prompts: Vec<Vec<u32>> = PROMPTS.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
    let model = checkpoint.load_resident(DType::F32, &Device::Cpu).unwrap();
    let sampler = Sampling::TopP { temperature: 1.0, top_p: 0.95, seed: 1 };
    let options = GenerateOptions { max_new_tokens: 24, sampler, seeds: Vec::new(), stop_tokens: Vec::new() };
    let generated = generate(&model, &prompts, &options, &mut moe_trace::IgnoreRouting, |_, _| ()).unwrap();
    let join = |(prompt, new): (&Vec<u32>, moe_model::Generation)| ([&prompt[..], &new.tokens].concat(), prompt.len());
    Fixture { sequences: prompts.iter().zip(generated.sequences).map(join).collect(), checkpoint }
}

/// Serves the sequences one after the other: a prompt as one prefill, then token by token. Returns the bits of all
/// logits and the routing.
fn serve<B: ExpertBank + 'static>(fixture: &Fixture, bank: &Arc<B>) -> (Vec<u32>, MemoryTrace) {
    let vb = fixture.checkpoint.var_builder(DType::F32, &Device::Cpu).unwrap();
    let model = Olmoe::new(fixture.checkpoint.config(), &vb, bank.clone()).unwrap();
    let mut recorder = Recorder::new(MemoryTrace::new(fixture.checkpoint.config().geometry()));
    let mut bits = Vec::new();
    for (tokens, prompt) in &fixture.sequences {
        let mut cache = KvCache::new(fixture.checkpoint.config());
        let decode = (*prompt..tokens.len()).map(|at| (at..at + 1, Phase::Decode));
        for (range, phase) in std::iter::once((0..*prompt, Phase::Prefill)).chain(decode) {
            let chunk = Chunk { sequence: 0, tokens: &tokens[range], cache: &mut cache, phase };
            let logits = model.forward(&mut [chunk], LogitsAt::All, &mut recorder).unwrap();
            let values: Vec<f32> = logits[0].flatten_all().unwrap().to_vec1().unwrap();
            bits.extend(values.into_iter().map(f32::to_bits));
        }
        recorder.sequence_end(0);
        bank.sequence_end().unwrap();
    }
    (bits, recorder.finish().unwrap())
}

#[test]
fn offloading_changes_no_bit_and_hits_equal_the_simulation_for_every_policy() {
    let fixture = fixture();
    let checkpoint = &fixture.checkpoint;
    let (shape, geometry) = (checkpoint.config().expert_shape(), checkpoint.config().geometry());
    let resident = Arc::new(checkpoint.resident_experts(DType::F32, &Device::Cpu).unwrap());
    let (expected_bits, expected_trace) = serve(&fixture, &resident);
    let names = |layer, expert| checkpoint.expert_locations(layer, expert);
    let mapped: Arc<dyn ExpertStore> =
        Arc::new(MappedStore::open(checkpoint.files(), shape, DType::F32, names).unwrap());
    let host: Arc<dyn ExpertStore> = Arc::new(HostStore::from_store(&*mapped).unwrap());
    let futures: Vec<Arc<Requests>> = geometry
        .layer_ids()
        .map(|layer| Arc::new(Requests::from_source(&expected_trace, &Pool::layer(&geometry, layer).unwrap()).unwrap()))
        .collect();

    let (k, experts) = (geometry.top_k(), geometry.experts());
    for (kind, (capacity, oversize)) in PolicyKind::all().iter().flat_map(|&kind| {
        [(1, Oversize::Bypass), (k - 1, Oversize::Waves), (k, Oversize::Bypass), (2 * k, Oversize::Waves)]
            .into_iter()
            .chain([(experts / 2, Oversize::Waves), (experts, Oversize::Waves)])
            .map(move |cache| (kind, cache))
    }) {
        let case = format!("{kind}, {capacity} slots, {oversize:?}");
        let store = if capacity == k { &mapped } else { &host };
        let policy = |layer: moe_trace::LayerId| {
            kind.build(Pool::layer(&geometry, layer).unwrap().shape(), capacity, Some(&futures[layer.index()]))
        };
        // On a CPU a bank that may compute otherwise does not.
        let exactness = if capacity == 1 { Exactness::Tolerant } else { Exactness::Strict };
        let options = OffloadOptions::slots(capacity).oversize(oversize).exactness(exactness);
        let options = options.policy_with(|pool, _| policy(pool.layers()[0]));
        let bank = OffloadedExperts::new(Arc::clone(store), &Device::Cpu, options).unwrap();
        let bank = Arc::new(bank);
        let (bits, trace) = serve(&fixture, &bank);
        assert!(bits == expected_bits, "{case}: logits differ");
        assert!(trace == expected_trace, "{case}: routing differs");
        for (layer, counters) in geometry.layer_ids().zip(bank.counters().unwrap()) {
            let cache = ExpertCache::new(policy(layer).unwrap(), experts, capacity, oversize).unwrap();
            let mut simulation = Simulation::new(Pool::layer(&geometry, layer).unwrap(), cache).unwrap();
            simulation.run(&expected_trace).unwrap();
            assert_eq!(counters.counts(), simulation.counts()[0], "{case}, {layer}");
        }
    }
}
