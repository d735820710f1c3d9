//! Slots on a GPU against slots in host memory. All but the first test need a GPU and are run by name:
//! `cargo test --release -p moe-offload --features cuda --test cuda -- --ignored --test-threads 1`.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::thread;

use candle_core::{DType, Device, Tensor};
use expert_cache::SlotId;
use moe_offload::{
    CpuSlots, CudaLoader, CudaSlots, ExpertBank, ExpertShape, ExpertSlots, ExpertStore, HostStore, OffloadError,
    OffloadOptions, OffloadedExperts, ProjectionBytes, RandomExperts, Routes, SlotGroup, WeightType, cuda_device,
};
use moe_trace::{ExpertId, LayerId, Phase};

const SHAPE: ExpertShape = ExpertShape { layers: 2, experts: 12, hidden: 512, intermediate: 256 };
const TOP_K: usize = 4;

/// Numbers in -1..1 that look random.
fn noise(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((seed * 7919 + i * 104_729) as f32 * 12.9898).sin()).collect()
}

fn experts(weight_type: WeightType) -> RandomExperts {
    RandomExperts::new(SHAPE, weight_type, 0).unwrap()
}

/// What a bank of `capacity` slots a layer computes for a prompt of 40 tokens and 30 decoded ones.
fn run(store: &Arc<HostStore>, device: &Device, capacity: usize) -> Vec<Vec<f32>> {
    let bank = OffloadedExperts::new(store.clone(), device, OffloadOptions::slots(capacity)).unwrap();
    let dtype = store.activations();
    let mut outputs = Vec::new();
    for call in 0..31 {
        let (tokens, phase) = if call == 0 { (40, Phase::Prefill) } else { (1, Phase::Decode) };
        let tensor = |seed, columns| {
            let values = noise(seed, tokens * columns);
            Tensor::from_vec(values, (tokens, columns), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
        };
        let hidden = tensor(1000 + call, SHAPE.hidden).to_device(device).unwrap();
        let weights = tensor(2000 + call, TOP_K).to_device(device).unwrap();
        let number = move |token, rank| u16::try_from((call * 5 + token * 7 + rank * 3) % SHAPE.experts).unwrap();
        let chosen = |token: usize| (0..TOP_K).map(move |rank| number(token, rank));
        let routes = Routes::new((0..tokens).flat_map(chosen).collect(), weights, phase).unwrap();
        for layer in [LayerId(0), LayerId(1)] {
            let output = bank.forward(layer, &hidden, &routes).unwrap();
            outputs.push(output.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap());
        }
    }
    outputs
}

fn largest_difference(one: &[Vec<f32>], other: &[Vec<f32>]) -> f32 {
    let pairs = one.iter().flatten().zip(other.iter().flatten());
    pairs.map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    assert!(matches!(cuda_device(4096), Err(OffloadError::NoGpu { ordinal: 4096, .. })));
}

#[test]
#[ignore = "needs a GPU"]
fn every_capacity_computes_the_same_bits_in_every_type() {
    let device = cuda_device(0).unwrap();
    for weight_type in WeightType::ALL {
        let store = Arc::new(HostStore::from_store(&experts(weight_type)).unwrap());
        let all = run(&store, &device, SHAPE.experts);
        for capacity in [1, 4, 7] {
            let some = run(&store, &device, capacity);
            assert!(
                all.iter().flatten().map(|x| x.to_bits()).eq(some.iter().flatten().map(|x| x.to_bits())),
                "{weight_type}"
            );
        }
        let host = run(&store, &Device::Cpu, SHAPE.experts);
        let scale = host.iter().flatten().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        let difference = largest_difference(&all, &host) / scale;
        println!("{weight_type}: {difference:e} of the largest value beside the host");
        // bf16 keeps 8 bits, and quantized kernels round tokens to 8.
        assert!(difference < if weight_type == WeightType::F32 { 1e-4 } else { 0.03 }, "{weight_type}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn page_locked_weights_arrive_as_staged_ones_do() {
    let device = cuda_device(0).unwrap();
    let store = Arc::new(HostStore::from_store(&experts(WeightType::BF16)).unwrap());
    let staged = run(&store, &device, 4);
    let loader = CudaLoader::of(&device).unwrap();
    let pinning = loader.pin(&store, u64::MAX).unwrap();
    println!("{pinning}");
    let locked = run(&store, &device, 4);
    assert_eq!(staged, locked);
    if pinning.refusal.is_none() {
        assert!(loader.copied().locked > 0 && loader.copied().staged == 0);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn loads_beside_compute_are_neither_torn_nor_early() {
    let device = cuda_device(0).unwrap();
    let experts: Vec<_> = (0..8).map(|id| experts(WeightType::BF16).fetch(LayerId(0), ExpertId(id)).unwrap()).collect();
    let hidden = Tensor::from_vec(noise(9, 64 * SHAPE.hidden), (64, SHAPE.hidden), &Device::Cpu).unwrap();
    let hidden = hidden.to_dtype(DType::BF16).unwrap().to_device(&device).unwrap();
    let rows: Vec<u32> = (0..64).collect();
    let slots = CudaSlots::new(4, SHAPE, WeightType::BF16, &device).unwrap();
    let load = |slot: u32, seed: usize| {
        experts[seed].with_bytes(&mut |bytes| slots.load(SlotId(slot), bytes)).unwrap();
    };
    let compute =
        |slot: u32| slots.forward(&hidden, &[SlotGroup { slot: SlotId(slot), rows: &rows }]).unwrap().remove(0);
    let values =
        |output: &Tensor| output.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected: Vec<_> = (0..8)
        .map(|seed| {
            load(0, seed);
            values(&compute(0))
        })
        .collect();
    // Slots 0 and 1 compute while 2 and 3 are loaded, and the other way round; nothing waits for the GPU in between.
    let mut outputs = Vec::new();
    for (slot, seed) in [(0, 0), (1, 1), (2, 2), (3, 3)] {
        load(slot, seed);
    }
    for step in 0..200usize {
        let (now, next) = if step % 2 == 0 { ([0, 1], [2, 3]) } else { ([2, 3], [0, 1]) };
        let seed = |which: usize, step: usize| if step < 2 { step * 2 + which } else { (step * 3 + which) % 8 };
        for (which, slot) in now.into_iter().enumerate() {
            outputs.push((seed(which, step), compute(slot)));
        }
        if step > 0 {
            thread::scope(|scope| {
                for (which, slot) in next.into_iter().enumerate() {
                    scope.spawn(move || load(slot, seed(which, step + 1)));
                }
            });
        }
    }
    for (seed, output) in &outputs {
        assert_eq!(values(output), expected[*seed]);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn slots_that_do_not_fit_are_refused_and_the_device_goes_on() {
    let device = cuda_device(0).unwrap();
    let error = CudaSlots::new(100_000_000, SHAPE, WeightType::F32, &device).unwrap_err();
    assert!(matches!(error, OffloadError::DeviceMemory { .. }), "{error}");
    let slots = CudaSlots::new(2, SHAPE, WeightType::F32, &device).unwrap();
    let error = slots.load(SlotId(0), ProjectionBytes { gate: &[0; 3], up: &[], down: &[] }).unwrap_err();
    assert!(matches!(error, OffloadError::SlotBytes { found: 3, .. }), "{error}");
    let store: &dyn ExpertStore = &experts(WeightType::F32);
    store.with_bytes(LayerId(0), ExpertId(1), &mut |bytes| slots.load(SlotId(0), bytes)).unwrap();
}

#[test]
#[ignore = "needs a GPU"]
fn a_stream_for_each_thread_is_refused() {
    let device = Device::new_cuda(0).unwrap();
    assert!(matches!(CudaSlots::new(1, SHAPE, WeightType::F32, &device), Err(OffloadError::StreamPerThread)));
    assert!(CpuSlots::new(1, SHAPE, WeightType::F32).is_ok());
}
