//! What a load costs beside a plain copy, and what tokens cost beside candle's quantized matrices.

use std::hint::black_box;
use std::time::Duration;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use expert_cache::SlotId;
use moe_offload::{
    BlockMatrix, CpuSlots, ExpertShape, ExpertSlots, ExpertStore, HostStore, Projection, ProjectionBytes,
    RandomExperts, WeightType,
};
use moe_trace::{ExpertId, LayerId};
use rayon::prelude::*;

/// Experts that take turns, so that what is copied is not in the processor's caches.
const EXPERTS: u16 = 32;

fn loads(c: &mut Criterion) {
    let mut group = c.benchmark_group("load an expert");
    for (model, hidden, intermediate, weights) in [
        ("gpt-oss", 2880, 2880, WeightType::Q4_0),
        ("gpt-oss", 2880, 2880, WeightType::Q8_0),
        ("Qwen3", 2048, 768, WeightType::Q4K),
        ("OLMoE", 2048, 1024, WeightType::F32),
        ("OLMoE", 2048, 1024, WeightType::BF16),
    ] {
        let shape = ExpertShape { layers: 1, experts: EXPERTS.into(), hidden, intermediate };
        let random = RandomExperts::new(shape, weights, 1).expect("a shape of models");
        let store: &dyn ExpertStore = &HostStore::from_store(&random).expect("memory");
        let slots = CpuSlots::new(8, shape, weights).expect("a shape of models");
        let bytes = shape.expert_bytes(weights);
        let mut plain: Vec<Vec<u8>> = (0..8).map(|_| vec![1; bytes]).collect();
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut turn = 0..;
        group.bench_function(BenchmarkId::new(format!("slot, {model}"), weights), |b| {
            b.iter(|| {
                let number: u32 = turn.next().expect("endless");
                let load = &mut |expert: ProjectionBytes<'_>| slots.load(SlotId(number % 8), expert);
                store.with_bytes(LayerId(0), expert(number), load).expect("fits");
            });
        });
        group.bench_function(BenchmarkId::new(format!("plain copy, {model}"), weights), |b| {
            b.iter(|| {
                let number: u32 = turn.next().expect("endless");
                let copy = &mut |projections: ProjectionBytes<'_>| {
                    let mut rest = &mut plain[number as usize % 8][..];
                    for from in projections.each() {
                        let (to, behind) = rest.split_at_mut(from.len());
                        to.copy_from_slice(from);
                        rest = behind;
                    }
                    Ok(())
                };
                store.with_bytes(LayerId(0), expert(number), copy).expect("fits");
            });
        });
    }
    group.finish();
}

fn expert(number: u32) -> ExpertId {
    ExpertId(u16::try_from(number % u32::from(EXPERTS)).expect("below 32"))
}

/// The gate of a random expert.
fn matrix(rows: usize, columns: usize, weights: WeightType) -> Projection {
    let shape = ExpertShape { layers: 1, experts: 1, hidden: columns, intermediate: rows };
    let types = [weights, weights, WeightType::F32];
    let experts = RandomExperts::new(shape, types, 1).expect("a shape of models");
    let expert = experts.fetch(LayerId(0), ExpertId(0)).expect("memory");
    expert.projections()[0].clone()
}

fn matmul(c: &mut Criterion) {
    let mut group = c.benchmark_group("multiply tokens");
    for (rows, columns) in [(2880usize, 2880usize), (768, 2048)] {
        for weights in WeightType::ALL {
            if !columns.is_multiple_of(weights.block_weights()) {
                continue;
            }
            let ours = matrix(rows, columns, weights);
            for tokens in [1, 8, 64] {
                let values = (0..tokens * columns).map(|i| (i as f32 * 0.37).sin()).collect();
                let hidden = Tensor::from_vec(values, (tokens, columns), &Device::Cpu).expect("sizes agree");
                let hidden = hidden.to_dtype(weights.activations()).expect("a float");
                group.throughput(Throughput::Elements((2 * tokens * rows * columns) as u64));
                let id = |whose| BenchmarkId::new(format!("{whose}, {rows} x {columns}, {weights}"), tokens);
                group.bench_function(id("ours"), |b| b.iter(|| black_box(ours.forward(&hidden).expect("sizes agree"))));
                if let Projection::Blocks(blocks) = &ours {
                    let candle = candle_matrix(blocks);
                    let multiply = || hidden.apply_op1_no_bwd(&candle).expect("sizes agree");
                    group.bench_function(id("candle"), |b| b.iter(|| black_box(multiply())));
                }
            }
        }
    }
    group.finish();
}

/// One token through experts that take turns, so that their weights come from memory; beside reading the same bytes.
fn from_memory(c: &mut Criterion) {
    let mut group = c.benchmark_group("an expert from memory");
    for (model, hidden, intermediate) in [("gpt-oss", 2880usize, 2880), ("OLMoE", 2048, 1024), ("Qwen3", 2048, 768)] {
        for weights in [WeightType::Q4_0, WeightType::Q8_0, WeightType::Q4K, WeightType::F32] {
            if !hidden.is_multiple_of(weights.block_weights()) {
                continue;
            }
            let shape = ExpertShape { layers: 1, experts: EXPERTS.into(), hidden, intermediate };
            let random = RandomExperts::new(shape, weights, 1).expect("a shape of models");
            let store = HostStore::from_store(&random).expect("memory");
            let token: Vec<f32> = (0..hidden).map(|i| (i as f32 * 0.37).sin()).collect();
            let token = Tensor::from_vec(token, (1, hidden), &Device::Cpu).expect("sizes agree");
            group.throughput(Throughput::Bytes(shape.expert_bytes(weights) as u64));
            let mut turn = 0..;
            let mut next = || store.fetch(LayerId(0), expert(turn.next().expect("endless"))).expect("exists");
            group.bench_function(BenchmarkId::new(format!("ours, {model}"), weights), |b| {
                b.iter(|| black_box(next().forward(&token).expect("sizes agree")));
            });
            group.bench_function(BenchmarkId::new(format!("read, {model}"), weights), |b| {
                b.iter(|| {
                    let read = &mut |projections: ProjectionBytes<'_>| {
                        projections.each().into_iter().for_each(add_up);
                        Ok(())
                    };
                    next().with_bytes(read).expect("in host memory");
                });
            });
        }
    }
    group.finish();
}

/// Reads bytes on all threads.
fn add_up(bytes: &[u8]) {
    let sum = |part: &[u8]| {
        let words = part.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
        words.fold(0u64, u64::wrapping_add)
    };
    black_box(bytes.par_chunks(1 << 18).map(sum).reduce(|| 0, u64::wrapping_add));
}

/// The same weights as candle holds them; it rearranges some types when it first multiplies them, which is not timed.
fn candle_matrix(blocks: &BlockMatrix) -> QTensor {
    let ggml = blocks.weight_type().ggml().expect("blocks are quantized");
    let storage = QStorage::from_data(blocks.bytes().into(), &Device::Cpu, ggml).expect("whole blocks");
    let tensor = QTensor::new(storage, blocks.dims()).expect("whole blocks");
    let tokens = Tensor::ones((1, blocks.dims().1), DType::F32, &Device::Cpu).expect("memory");
    tokens.apply_op1_no_bwd(&tensor).expect("sizes agree");
    tensor
}

criterion_group! {
    name = weights;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = loads, matmul, from_memory
}
criterion_main!(weights);
