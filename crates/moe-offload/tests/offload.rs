//! Offloaded experts against resident ones: equal bits, equal hits, failures rolled back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Tensor};
use expert_cache::{ExpertCache, Overlap, Oversize, PolicyKind, Pool, PoolShape, Requests, Simulation};
use moe_offload::{
    ExpertBank, ExpertShape, ExpertStore, ExpertTypes, ExpertWeights, HostStore, MappedStore, OffloadError,
    OffloadOptions, OffloadedExperts, Projection, ProjectionBytes, ResidentExperts, Result, Routes, Transfers,
    WeightLocation, WeightType, measure, measure_disk,
};
use moe_trace::{ExpertId, Geometry, LayerId, MemoryTrace, Phase, RoutingSource, SequenceBuf};

const SHAPE: ExpertShape = ExpertShape { layers: 2, experts: 6, hidden: 8, intermediate: 4 };
const TOP_K: usize = 2;

/// Numbers in -1..1 that look random.
fn noise(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((seed * 7919 + i * 104_729) as f32 * 12.9898).sin()).collect()
}

fn names(layer: LayerId, expert: ExpertId) -> [String; 3] {
    ["gate", "up", "down"].map(|projection| format!("{}.{}.{projection}", layer.0, expert.0))
}

/// A checkpoint of random experts in two files.
fn checkpoint(directory: &Path, dtype: DType) -> Vec<std::path::PathBuf> {
    let files = ["a.safetensors", "b.safetensors"].map(|name| directory.join(name));
    for (layer, file) in (0..).map(LayerId).zip(&files) {
        let mut tensors = HashMap::new();
        for expert in (0..6).map(ExpertId) {
            for (which, (name, dims)) in names(layer, expert).into_iter().zip(SHAPE.projections()).enumerate() {
                let values = noise(layer.index() * 100 + expert.index() * 10 + which, dims.0 * dims.1);
                let tensor = Tensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                tensors.insert(name, tensor);
            }
        }
        candle_core::safetensors::save(&tensors, file).unwrap();
    }
    files.to_vec()
}

fn store(directory: &Path) -> MappedStore {
    MappedStore::open(&checkpoint(directory, DType::F32), SHAPE, DType::F32, names).unwrap()
}

fn resident(store: &dyn ExpertStore) -> ResidentExperts {
    let layer = |layer| (0..6).map(|expert| store.fetch(LayerId(layer), ExpertId(expert)).unwrap()).collect();
    ResidentExperts::new(vec![layer(0), layer(1)])
}

/// A call: tokens, experts of layer 0, experts of layer 1.
struct Call {
    phase: Phase,
    tokens: usize,
    experts: [Vec<u16>; 2],
}

/// First experts, which stay for three tokens; second experts, which change with every token.
const SLOW: [u16; 7] = [2, 0, 5, 2, 1, 4, 3];
const FAST: [u16; 11] = [1, 4, 0, 2, 2, 3, 0, 1, 4, 4, 0];

/// A prompt of five tokens and forty decoded ones with some locality.
fn calls() -> Vec<Call> {
    let choose = |step: usize, salt: usize| {
        let first = SLOW[(step / 3 + salt) % SLOW.len()];
        let second = FAST[(step + 3 * salt) % FAST.len()];
        [first, if second >= first { second + 1 } else { second }]
    };
    let call = |phase, steps: std::ops::Range<usize>| Call {
        phase,
        tokens: steps.len(),
        experts: [1, 2].map(|salt| steps.clone().flat_map(|step| choose(step, salt)).collect()),
    };
    std::iter::once(call(Phase::Prefill, 0..5)).chain((5..45).map(|step| call(Phase::Decode, step..step + 1))).collect()
}

fn trace(calls: &[Call]) -> MemoryTrace {
    let geometry = Geometry::decoder(SHAPE.layers, SHAPE.experts, TOP_K).unwrap();
    let mut sequence = SequenceBuf::default();
    for call in calls {
        for token in 0..call.tokens {
            let row = |layer: usize| &call.experts[layer][token * TOP_K..(token + 1) * TOP_K];
            sequence.experts.extend(row(0).iter().chain(row(1)));
            sequence.phases.push(call.phase.code());
        }
    }
    let weights = |(number, call): (usize, &Call)| {
        let weights = noise(number + 1000, call.tokens * TOP_K);
        weights.chunks(TOP_K).flat_map(|token| [token, token].concat()).collect::<Vec<f32>>()
    };
    sequence.weights = Some(calls.iter().enumerate().flat_map(weights).collect());
    let mut trace = MemoryTrace::new(geometry);
    trace.push(sequence).unwrap();
    trace
}

fn run(bank: &dyn ExpertBank, calls: &[Call]) -> Result<Vec<Vec<f32>>> {
    let mut outputs = Vec::new();
    for (number, call) in calls.iter().enumerate() {
        let mut hidden = Tensor::from_vec(noise(number, call.tokens * 8), (call.tokens, 8), &Device::Cpu)?;
        for (layer, experts) in (0..).map(LayerId).zip(&call.experts) {
            let weights = noise(number + 1000, call.tokens * TOP_K);
            let weights = Tensor::from_vec(weights, (call.tokens, TOP_K), &Device::Cpu)?;
            hidden = bank.forward(layer, &hidden, &Routes::new(experts.clone(), weights, call.phase)?)?;
            outputs.push(hidden.flatten_all()?.to_vec1()?);
        }
    }
    Ok(outputs)
}

fn future(trace: &MemoryTrace, layer: LayerId) -> Arc<Requests> {
    Arc::new(Requests::from_source(trace, &Pool::layer(trace.geometry(), layer).unwrap()).unwrap())
}

fn bits(outputs: &[Vec<f32>]) -> Vec<u32> {
    outputs.iter().flatten().map(|value| value.to_bits()).collect()
}

const POOL: PoolShape = PoolShape { layers: 1, experts: SHAPE.experts };

#[test]
fn every_capacity_policy_and_store_gives_the_resident_bits_and_the_simulated_counts() {
    let directory = tempfile::tempdir().unwrap();
    let mapped: Arc<dyn ExpertStore> = Arc::new(store(directory.path()));
    let host: Arc<dyn ExpertStore> = Arc::new(HostStore::from_store(mapped.as_ref()).unwrap());
    let calls = calls();
    let trace = trace(&calls);
    let expected = bits(&run(&resident(mapped.as_ref()), &calls).unwrap());
    for store in [mapped, host] {
        for (kind, capacity, oversize) in
            PolicyKind::all().iter().copied().flat_map(|kind| (1..=6).map(move |capacity| (kind, capacity))).flat_map(
                |(kind, capacity)| [Oversize::Waves, Oversize::Bypass].map(|oversize| (kind, capacity, oversize)),
            )
        {
            let policy = |pool: &Pool, slots| kind.build(pool.shape(), slots, Some(&future(&trace, pool.layers()[0])));
            let options = OffloadOptions::slots(capacity).oversize(oversize).policy_with(policy);
            let bank = OffloadedExperts::new(Arc::clone(&store), &Device::Cpu, options).unwrap();
            assert_eq!(bits(&run(&bank, &calls).unwrap()), expected, "{kind} with {capacity} slots, {oversize:?}");
            for (layer, counters) in (0..).map(LayerId).zip(bank.counters().unwrap()) {
                let policy = kind.build(POOL, capacity, Some(&future(&trace, layer))).unwrap();
                let cache = ExpertCache::new(policy, SHAPE.experts, capacity, oversize).unwrap();
                let geometry = Geometry::decoder(SHAPE.layers, SHAPE.experts, TOP_K).unwrap();
                let mut simulation = Simulation::new(Pool::layer(&geometry, layer).unwrap(), cache).unwrap();
                simulation.run(&trace).unwrap();
                assert_eq!(counters.counts(), simulation.counts()[0], "{kind} with {capacity} slots, {oversize:?}");
                let loads = counters.counts().total().loads;
                let bytes = counters.prefill.loaded_bytes + counters.decode.loaded_bytes;
                assert_eq!(bytes, loads * SHAPE.expert_bytes(WeightType::F32) as u64);
            }
        }
    }
}

#[test]
fn half_precision_checkpoints_are_widened_on_fetch() {
    let directory = tempfile::tempdir().unwrap();
    let files = checkpoint(directory.path(), DType::BF16);
    let store = MappedStore::open(&files, SHAPE, DType::F32, names).unwrap();
    let expert = store.fetch(LayerId(1), ExpertId(5)).unwrap();
    let Projection::Dense(gate) = &expert.projections()[0] else { panic!("dense") };
    let expected = noise(150, 32).into_iter().map(|value| half::bf16::from_f32(value).to_f32()).collect::<Vec<_>>();
    assert_eq!(gate.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
}

/// Gates and ups of two experts stacked, downs apart or stacked, too: the seeds of the fuzz target. With `UPDATE_GOLDEN` set the
/// test makes the files first.
#[test]
fn the_seeds_of_the_fuzz_target_are_read() {
    let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/safetensors/stacked");
    let shape = ExpertShape { layers: 1, experts: 2, hidden: 4, intermediate: 2 };
    let counting = |from: u8, count: u8| (from..from + count).map(f32::from).collect::<Vec<_>>();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let tensors = [("in", 0, (8, 4)), ("0.out", 32, (4, 2)), ("1.out", 40, (4, 2))].map(|(name, from, dims)| {
            let count = u8::try_from(dims.0 * dims.1).unwrap();
            (name, Tensor::from_vec(counting(from, count), dims, &Device::Cpu).unwrap())
        });
        candle_core::safetensors::save(&HashMap::from(tensors), &seed).unwrap();
    }
    let fused = seed.with_file_name("fused");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let tensors = [("gate_up_proj", 0, (2, 4, 4)), ("down_proj", 32, (2, 4, 2))].map(|(name, from, dims)| {
            let count = u8::try_from(dims.0 * dims.1 * dims.2).unwrap();
            (name, Tensor::from_vec(counting(from, count), dims, &Device::Cpu).unwrap())
        });
        candle_core::safetensors::save(&HashMap::from(tensors), &fused).unwrap();
    }
    let locations = |_, expert: ExpertId| {
        let half = |half| WeightLocation::part("in", 2 * expert.index() + half, 4);
        [half(0), half(1), WeightLocation::whole(format!("{}.out", expert.0))]
    };
    let store = MappedStore::open(&[seed], shape, DType::F32, locations).unwrap();
    let all = |_, expert| WeightLocation::fused("gate_up_proj", "down_proj", expert, 2);
    let fused = MappedStore::open(&[fused], shape, DType::F32, all).unwrap();
    let number = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap());
    let compare = &mut |bytes: ProjectionBytes<'_>| {
        let numbers = bytes.each().map(|bytes| bytes.chunks(4).map(number).collect::<Vec<_>>());
        assert_eq!(numbers, [(16, 8), (24, 8), (40, 8)].map(|(from, count)| counting(from, count)));
        Ok(())
    };
    for store in [&store as &dyn ExpertStore, &fused] {
        store.with_bytes(LayerId(0), ExpertId(1), compare).unwrap();
    }
}

/// A store whose device goes away for a while.
#[derive(Debug)]
struct Flaky {
    store: MappedStore,
    down: AtomicBool,
}

impl ExpertStore for Flaky {
    fn shape(&self) -> ExpertShape {
        self.store.shape()
    }

    fn weight_types(&self) -> &[ExpertTypes] {
        self.store.weight_types()
    }

    fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
        if expert == ExpertId(4) && self.down.load(Ordering::Relaxed) {
            let source = std::io::Error::other("device is gone");
            return Err(OffloadError::Io { path: "a.safetensors".into(), source });
        }
        self.store.fetch(layer, expert)
    }
}

#[test]
fn a_failed_load_fails_its_call_and_the_bank_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let flaky = Arc::new(Flaky { store: store(directory.path()), down: AtomicBool::new(true) });
    let bank = OffloadedExperts::new(flaky.clone(), &Device::Cpu, OffloadOptions::slots(3)).unwrap();
    let calls = calls();
    let error = run(&bank, &calls).unwrap_err();
    assert_eq!(error.to_string(), "layer 0, expert 4 cannot be loaded");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "a.safetensors: cannot read checkpoint file");
    // The loads of the failed call that went well have moved bytes; the call itself does not count.
    let total = bank.counters().unwrap()[0].total();
    let completed = total.counts.loads * SHAPE.expert_bytes(WeightType::F32) as u64;
    assert!(total.loaded_bytes >= completed && total.counts.requests < calls.len() as u64);
    flaky.down.store(false, Ordering::Relaxed);
    let expected = run(&resident(&flaky.store), &calls).unwrap();
    assert_eq!(bits(&run(&bank, &calls).unwrap()), bits(&expected));
}

#[test]
fn bad_checkpoints_routes_and_capacities_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let files = checkpoint(directory.path(), DType::F32);
    let open = |files: &[std::path::PathBuf], shape| MappedStore::open(files, shape, DType::F32, names).unwrap_err();
    assert_eq!(open(&files[..1], SHAPE).to_string(), "1.0.gate is in none of the 1 checkpoint files");
    let wide = ExpertShape { intermediate: 5, ..SHAPE };
    assert_eq!(open(&files, wide).to_string(), "0.0.gate has shape [4, 8], expected [5, 8]");
    let truncated = directory.path().join("truncated.safetensors");
    std::fs::write(&truncated, &std::fs::read(&files[0]).unwrap()[..500]).unwrap();
    assert!(open(&[truncated], SHAPE).to_string().ends_with("truncated.safetensors: not a readable safetensors file"));
    let absent = open(&[directory.path().join("absent")], SHAPE).to_string();
    assert!(absent.ends_with("absent: cannot read checkpoint file"), "{absent}");

    for (shape, message) in [
        (ExpertShape { experts: 0, ..SHAPE }, "experts is 0, allowed are 1..=65535"),
        (ExpertShape { layers: 65536, ..SHAPE }, "layers is 65536, allowed are 1..=65535"),
    ] {
        assert_eq!(open(&files, shape).to_string(), message);
    }
    let store = store(directory.path());
    let fetch = |layer, expert| store.fetch(LayerId(layer), ExpertId(expert)).unwrap_err().to_string();
    assert_eq!(fetch(1, 6), "layer 1: expert 6 is out of range, the layer has 6");
    assert_eq!(fetch(2, 0), "layer 2 is out of range, the bank has 2 layers");
    let wide = Tensor::zeros((4, 8), DType::F64, &Device::Cpu).unwrap();
    let file = directory.path().join("wide.safetensors");
    candle_core::safetensors::save(&HashMap::from([("0.0.gate", wide)]), &file).unwrap();
    assert_eq!(
        open(&[file], SHAPE).to_string(),
        "0.0.gate has dtype F64, supported are f32, f16, bf16, q8_0, q6_k, q5_1, q5_0, q5_k, q4_1, q4_0, q4_k, q3_k, q2_k"
    );

    let store: Arc<dyn ExpertStore> = Arc::new(store);
    let bank = |slots| OffloadedExperts::new(Arc::clone(&store), &Device::Cpu, OffloadOptions::slots(slots));
    for capacity in [0, 7] {
        let source = std::error::Error::source(&bank(capacity).err().unwrap()).unwrap().to_string();
        assert_eq!(source, format!("capacity is {capacity} slots, allowed are 1..=6"));
    }
    let bank = bank(2).unwrap();
    let forward = |layer, experts: Vec<u16>| {
        let weights = Tensor::ones((1, experts.len()), DType::F32, &Device::Cpu)?;
        let hidden = Tensor::zeros((1, 8), DType::F32, &Device::Cpu)?;
        bank.forward(LayerId(layer), &hidden, &Routes::new(experts, weights, Phase::Decode)?)
    };
    assert_eq!(
        forward(0, vec![1, 6]).unwrap_err().to_string(),
        "layer 0, token 0: expert 6 is out of range, the layer has 6"
    );
    assert_eq!(forward(2, vec![1]).unwrap_err().to_string(), "layer 2 is out of range, the bank has 2 layers");
    let weights = Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap();
    let short = Routes::new(vec![0; 3], weights, Phase::Decode).unwrap_err();
    assert_eq!(short.to_string(), "experts of the routes is 3, expected 4");
}

#[test]
fn empty_slots_contribute_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let bank = resident(&store(directory.path()));
    let hidden = Tensor::from_vec(noise(3, 16), (2, 8), &Device::Cpu).unwrap();
    let forward = |experts: Vec<u16>, weights: [f32; 4]| {
        let weights = Tensor::from_slice(&weights, (2, 2), &Device::Cpu).unwrap();
        let routes = Routes::new(experts, weights, Phase::Decode).unwrap();
        bank.forward(LayerId(0), &hidden, &routes).unwrap().to_vec2::<f32>().unwrap()
    };
    let with_empty = forward(vec![2, moe_trace::EMPTY_SLOT, 1, 3], [0.5, f32::NAN, 0.25, 0.75]);
    let without = forward(vec![2, 0, 1, 3], [0.5, 0.0, 0.25, 0.75]);
    assert_eq!(with_empty, without);
}

#[test]
fn a_call_of_no_token_asks_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn ExpertStore> = Arc::new(store(directory.path()));
    let bank = OffloadedExperts::new(store, &Device::Cpu, OffloadOptions::slots(2)).unwrap();
    let none = |columns| Tensor::zeros((0, columns), DType::F32, &Device::Cpu).unwrap();
    let routes = Routes::new(vec![], none(2), Phase::Decode).unwrap();
    assert_eq!(bank.forward(LayerId(0), &none(8), &routes).unwrap().dims(), [0, 8]);
    assert_eq!(bank.counters().unwrap()[0].counts().total().requests, 0);
}

#[test]
fn the_machine_is_measured() {
    let directory = tempfile::tempdir().unwrap();
    let files = checkpoint(directory.path(), DType::F32);
    let disk = measure_disk(&files, || MappedStore::open(&files, SHAPE, DType::F32, names)).unwrap();
    let host: Arc<dyn ExpertStore> = Arc::new(HostStore::from_store(&store(directory.path())).unwrap());
    let mut profile = measure("here", &host, &Device::Cpu, Transfers::threads(1)).unwrap();
    assert_eq!(profile.overlap, Overlap::Copies);
    // A fetch from host memory copies nothing, one from a file does.
    assert!(profile.disk.bytes_per_second > disk.bytes_per_second);
    profile.disk = disk;
    profile.check().unwrap();
    let absent = [directory.path().join("c")];
    let missing = measure_disk(&absent, || MappedStore::open(&absent, SHAPE, DType::F32, names)).unwrap_err();
    assert!(matches!(missing, OffloadError::Io { .. }));
}
