//! The promises of the workspace on its trained default model: offloading changes no bit, and the runtime's hits are the
//! simulator's, for every policy.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use candle_core::{DType, Device};
use expert_cache::{
    ExpertCache, Oversize, Partition, PolicyKind, Pool, PrefetchCounts, PrefetcherKind, Requests, Serving, Simulation,
};
use moe_model::{Checkpoint, Chunk, GenerateOptions, Generation, KvCache, LogitsAt, Olmoe, Sampling, generate};
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
    let join = |(prompt, new): (&Vec<u32>, Generation)| ([&prompt[..], &new.tokens].concat(), prompt.len());
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

/// Prefetchers that predict from the history of a sequence, others, and none.
const PREFETCHERS: [PrefetcherKind; 6] = [
    PrefetcherKind::None,
    PrefetcherKind::PreviousToken,
    PrefetcherKind::NextLayer,
    PrefetcherKind::Markov,
    PrefetcherKind::History { passes: 8 },
    PrefetcherKind::Oracle { accuracy: 0.7 },
];

/// Predictions considered after every request.
const PER_REQUEST: usize = 3;

/// Continues the prompts on a bank, `batch` at a time; returns the new tokens and the routing.
fn continue_prompts<B: ExpertBank + 'static>(
    checkpoint: &Checkpoint,
    bank: &Arc<B>,
    batch: usize,
) -> (Vec<Generation>, MemoryTrace) {
    let tokenizer = checkpoint.tokenizer().unwrap();
    let prompts: Vec<Vec<u32>> = PROMPTS.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
    let vb = checkpoint.var_builder(DType::F32, &Device::Cpu).unwrap();
    let model = Olmoe::new(checkpoint.config(), &vb, bank.clone()).unwrap();
    let mut recorder = Recorder::new(MemoryTrace::new(checkpoint.config().geometry()));
    let sampler = Sampling::TopP { temperature: 1.0, top_p: 0.95, seed: 3 };
    let options = GenerateOptions { max_new_tokens: 8, sampler, seeds: Vec::new(), stop_tokens: Vec::new() };
    let mut texts = Vec::new();
    for prompts in prompts.chunks(batch) {
        texts.extend(generate(&model, prompts, &options, &mut recorder, |_, _| ()).unwrap().sequences);
    }
    (texts, recorder.finish().unwrap())
}

/// A bank hears of the end of every sequence by generation itself, so that policies and prefetchers decide on the history
/// that the simulator has.
#[test]
fn hits_and_prefetches_of_generated_text_equal_the_simulation_for_every_policy_and_prefetcher() {
    let checkpoint = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/default")).unwrap();
    let (shape, geometry) = (checkpoint.config().expert_shape(), checkpoint.config().geometry());
    let locations = |layer, expert| checkpoint.expert_locations(layer, expert);
    let mapped = MappedStore::open(checkpoint.files(), shape, DType::F32, locations).unwrap();
    let store: Arc<dyn ExpertStore> = Arc::new(HostStore::from_store(&mapped).unwrap());
    let resident = Arc::new(checkpoint.resident_experts(DType::F32, &Device::Cpu).unwrap());
    let (partition, slots) = (Partition::per_layer(&geometry), 2 * geometry.top_k());

    let mut counted = Vec::new();
    let alone = PREFETCHERS.into_iter().map(|prefetcher| (1, prefetcher));
    for (batch, prefetcher) in alone.chain([(2, PrefetcherKind::Markov)]) {
        let serving = Serving::new(batch, 1).unwrap();
        let expected = continue_prompts(&checkpoint, &resident, batch);
        let wanted = |pool: &Pool| Arc::new(Requests::served(&expected.1, pool, serving).unwrap());
        let futures: Vec<Arc<Requests>> = partition.pools().iter().map(wanted).collect();
        let all = wanted(&Pool::model(&geometry));
        let prefetching = || prefetcher.build(&geometry, 1, Some(&all), 0).unwrap();
        for kind in PolicyKind::all() {
            let case = format!("{kind}, prefetch {prefetcher}, batches of {batch}");
            let policy = |pool: &Pool| kind.build(pool.shape(), slots, Some(&futures[pool.layers()[0].index()]));
            let options = OffloadOptions::slots(slots).partition(partition.clone()).policy_with(|pool, _| policy(pool));
            let options = match prefetching() {
                Some(prefetcher) => options.prefetch_with(prefetcher, PER_REQUEST),
                None => options,
            };
            let bank = Arc::new(OffloadedExperts::new(Arc::clone(&store), &Device::Cpu, options).unwrap());
            assert!(continue_prompts(&checkpoint, &bank, batch) == expected, "{case}: text or routing differs");

            let cache = |pool| ExpertCache::new(policy(pool).unwrap(), shape.experts, slots, Oversize::Waves).unwrap();
            let caches = partition.pools().iter().map(cache).collect();
            let mut simulation =
                Simulation::of_pools(partition.pools().to_vec(), caches).unwrap().with_serving(serving);
            if let Some(prefetcher) = prefetching() {
                simulation = simulation.with_prefetching(prefetcher, PER_REQUEST);
            }
            simulation.run(&expected.1).unwrap();
            let counts: Vec<_> = bank.counters().unwrap().iter().map(|layer| layer.counts()).collect();
            assert_eq!(counts, simulation.counts(), "{case}");
            // Whether a prefetch came in time, the clock decides.
            let used = |counts: &PrefetchCounts| {
                (counts.issued, counts.useful + counts.late, counts.useless, counts.polluting)
            };
            let layers = bank.report().unwrap().layers;
            let prefetches: Vec<_> = layers.iter().map(|layer| used(&layer.prefetch.counts)).collect();
            let simulated: Vec<_> = simulation.prefetch_counts().iter().map(used).collect();
            let expected = if simulated.is_empty() { vec![(0, 0, 0, 0); shape.layers] } else { simulated };
            assert_eq!(prefetches, expected, "{case}");
            counted.push(prefetches);
        }
    }
    // Prefetchers differ from one another, and from none.
    counted.sort_unstable();
    counted.dedup();
    assert!(counted.len() > PREFETCHERS.len(), "{}", counted.len());
}
