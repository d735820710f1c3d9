//! Every weight type, in every place.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use expert_cache::{Oversize, SlotId};
use moe_offload::{
    BlockMatrix, CpuSlots, ExpertBank, ExpertShape, ExpertSlots, ExpertStore, ExpertTypes, ExpertWeights, HostStore,
    MappedStore, OffloadError, OffloadOptions, OffloadedExperts, Projection, ProjectionBytes, QuantizedExperts,
    RandomExperts, ReadAhead, ResidentExperts, Routes, WeightType, write_gguf,
};
use moe_trace::{ExpertId, LayerId, Phase};

const SHAPE: ExpertShape = ExpertShape { layers: 2, experts: 4, hidden: 256, intermediate: 256 };
const TOP_K: usize = 2;

fn types() -> Vec<ExpertTypes> {
    let mixed =
        [[WeightType::Q4K, WeightType::Q4K, WeightType::Q6K], [WeightType::F16, WeightType::Q8_0, WeightType::F32]];
    WeightType::ALL.into_iter().map(Into::into).chain(mixed.map(Into::into)).collect()
}

fn values(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(values.iter().all(|value| value.is_finite()));
    values.into_iter().map(f32::to_bits).collect()
}

fn tokens(count: usize, width: usize, salt: usize, dtype: DType) -> Tensor {
    let values = (0..count * width).map(|i| ((i + salt * 31) as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, (count, width), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// A prompt of three tokens, then single ones.
fn run(bank: &dyn ExpertBank, dtype: DType) -> Vec<u32> {
    let mut all = Vec::new();
    for (call, count) in [3, 1, 1, 1, 1].into_iter().enumerate() {
        let mut hidden = tokens(count, SHAPE.hidden, call, dtype);
        for layer in [0u16, 1].map(LayerId) {
            let first = |token: usize| (call * 2 + token + layer.index()) % SHAPE.experts;
            let expert = |token, rank| u16::try_from((first(token) + rank * (1 + call % 3)) % SHAPE.experts).unwrap();
            let experts = (0..count).flat_map(|token| (0..TOP_K).map(move |rank| expert(token, rank))).collect();
            let weights = Tensor::full(0.5f32, (count, TOP_K), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let phase = if count > 1 { Phase::Prefill } else { Phase::Decode };
            let routes = Routes::new(experts, weights, phase).unwrap();
            hidden = bank.forward(layer, &hidden, &routes).unwrap();
            all.extend(values(&hidden));
        }
    }
    all
}

fn resident(store: &dyn ExpertStore) -> ResidentExperts {
    let layer = |layer| (0..4).map(|expert| store.fetch(LayerId(layer), ExpertId(expert)).unwrap()).collect();
    ResidentExperts::new(vec![layer(0), layer(1)])
}

#[test]
fn rows_of_any_number_of_blocks_are_multiplied() {
    for weights in WeightType::ALL.into_iter().filter(|weights| weights.ggml().is_some()) {
        for blocks in 1..=4 {
            let columns = blocks * weights.block_weights();
            let (rows, tokens) = (tokens(7, columns, 1, DType::F32), tokens(3, columns, 2, DType::F32));
            let matrix = BlockMatrix::quantize(&rows, weights).unwrap();
            let numbers = matrix.dequantize().unwrap();
            let product = |tokens: &Tensor, rows: &Tensor| tokens.matmul(&rows.t().unwrap()).unwrap();
            let (expected, scale) =
                (product(&tokens, &numbers), product(&tokens.abs().unwrap(), &numbers.abs().unwrap()));
            let error = ((matrix.forward(&tokens).unwrap() - expected).unwrap().abs().unwrap() / scale).unwrap();
            let worst = error.max_all().unwrap().to_scalar::<f32>().unwrap();
            // Tokens are rounded to eight bits.
            assert!(worst < 1.0 / 127.0, "{weights}, {blocks} blocks: {worst}");
        }
    }
}

#[test]
fn resident_slots_and_host_compute_agree_bit_for_bit_in_every_type() {
    let directory = tempfile::tempdir().unwrap();
    for (number, types) in types().into_iter().enumerate() {
        let random = RandomExperts::new(SHAPE, types, 11).unwrap();
        let dtype = random.activations();
        let expected = run(&resident(&random), dtype);
        let path = directory.path().join(format!("{number}.gguf"));
        write_gguf(&random, &path, &mut |_, _| {}).unwrap();
        let mapped = Arc::new(MappedStore::open_gguf(&[path]).unwrap());
        assert_eq!(mapped.weight_types(), random.weight_types());
        let host = Arc::new(HostStore::from_store(&*mapped).unwrap());
        assert_eq!(run(&resident(&*mapped), dtype), expected, "{types}");
        for store in [mapped as Arc<dyn ExpertStore>, host] {
            for (capacity, oversize) in (1..=4).flat_map(|slots| [(slots, Oversize::Waves), (slots, Oversize::Bypass)])
            {
                let options = OffloadOptions::slots(capacity).oversize(oversize);
                let bank = OffloadedExperts::new(store.clone(), &Device::Cpu, options).unwrap();
                assert_eq!(run(&bank, dtype), expected, "{types}, {capacity} slots, {oversize:?}, {store:?}");
            }
        }
    }
}

/// The matrix of a random expert.
fn matrix(weights: WeightType) -> BlockMatrix {
    let shape = ExpertShape { layers: 1, experts: 1, hidden: 512, intermediate: 27 };
    let experts = RandomExperts::new(shape, [weights, weights, WeightType::F32], 5).unwrap();
    match &experts.fetch(LayerId(0), ExpertId(0)).unwrap().projections()[0] {
        Projection::Blocks(blocks) => blocks.clone(),
        other => panic!("{other:?}"),
    }
}

fn quantized() -> impl Iterator<Item = WeightType> {
    WeightType::ALL.into_iter().filter(|weights| weights.ggml().is_some())
}

#[test]
fn blocks_multiply_as_candle_does_with_weights_that_it_leaves_as_they_are() {
    for weights in quantized() {
        let matrix = matrix(weights);
        let storage = QStorage::from_data(matrix.bytes().into(), &Device::Cpu, weights.ggml().unwrap()).unwrap();
        // 27 rows: candle rearranges multiples of 16 only.
        let candle = QTensor::new(storage, (27, 512)).unwrap();
        for count in [1, 3, 8] {
            let tokens = tokens(count, 512, 1, DType::F32);
            let expected = tokens.apply_op1_no_bwd(&candle).unwrap();
            assert_eq!(values(&matrix.forward(&tokens).unwrap()), values(&expected), "{weights}");
        }
        let numbers = matrix.dequantize().unwrap();
        assert_eq!(values(&numbers), values(&candle.dequantize(&Device::Cpu).unwrap()), "{weights}");
        let again = BlockMatrix::quantize(&numbers, weights).unwrap().dequantize().unwrap();
        let error = (&numbers - again).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        assert!(error < 0.02, "{weights}: {error}, of weights of 0.044");
    }
}

#[test]
fn the_output_of_a_token_depends_on_no_other_token() {
    for weights in quantized() {
        let (matrix, many) = (matrix(weights), tokens(9, 512, 2, DType::F32));
        let together = matrix.forward(&many).unwrap();
        for token in 0..9 {
            let alone = matrix.forward(&many.narrow(0, token, 1).unwrap()).unwrap();
            assert_eq!(values(&alone), values(&together.narrow(0, token, 1).unwrap()), "{weights}");
        }
    }
}

#[test]
fn a_load_allocates_no_weights() {
    for types in types() {
        let (slots, random) = (CpuSlots::new(1, SHAPE, types).unwrap(), RandomExperts::new(SHAPE, types, 1).unwrap());
        let mut load = |expert: ProjectionBytes<'_>| {
            let allocated = allocation_counter::measure(|| slots.load(SlotId(0), expert).unwrap());
            // No weight: candle takes some words to find the storage of a tensor.
            assert!(allocated.bytes_total < 500, "{types}: {}", allocated.bytes_total);
            Ok(())
        };
        (&random as &dyn ExpertStore).with_bytes(LayerId(0), ExpertId(0), &mut load).unwrap();
    }
}

#[test]
fn mapped_blocks_are_computed_where_they_lie() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("experts.gguf");
    write_gguf(&RandomExperts::new(SHAPE, WeightType::Q8_0, 1).unwrap(), &path, &mut |_, _| {}).unwrap();
    let mapped = MappedStore::open_gguf(&[path]).unwrap();
    let is_mapped = |expert: &ExpertWeights| {
        expert.projections().iter().all(|projection| matches!(projection, Projection::Blocks(b) if b.is_mapped()))
    };
    let mut fetched = None;
    let allocated = allocation_counter::measure(|| fetched = Some(mapped.fetch(LayerId(1), ExpertId(3)).unwrap()));
    assert!(is_mapped(&fetched.unwrap()));
    assert_eq!(allocated.bytes_total, 0);
    let host = HostStore::from_store(&mapped).unwrap();
    assert!(!is_mapped(&host.fetch(LayerId(1), ExpertId(3)).unwrap()));
}

#[test]
fn a_host_store_keeps_its_limit_and_tells_how_far_it_is() {
    let random = RandomExperts::new(SHAPE, WeightType::F16, 1).unwrap();
    let needed = 2 * 4 * 3 * 256 * 256 * 2;
    let mut told = Vec::new();
    let mut refused = None;
    let allocated = allocation_counter::measure(|| {
        refused = Some(HostStore::within(&random, needed - 1, &mut |_, _| panic!("nothing is read")).unwrap_err());
    });
    assert_eq!(refused.unwrap().to_string(), "the experts take 3145728 bytes of host memory, allowed are 3145727");
    assert!(allocated.bytes_total < 1000);
    let host = HostStore::within(&random, needed, &mut |done, all| told.push((done, all))).unwrap();
    assert_eq!(host.bytes(), needed);
    assert_eq!(told, (1..=8).map(|expert| (expert * needed / 8, needed)).collect::<Vec<_>>());
}

#[test]
fn conversions_keep_what_the_types_can() {
    let numbers: Arc<dyn ExpertStore> = Arc::new(RandomExperts::new(SHAPE, WeightType::F32, 9).unwrap());
    let exact = numbers.fetch(LayerId(0), ExpertId(3)).unwrap();
    let tokens = tokens(3, SHAPE.hidden, 0, DType::F32);
    let expected = exact.forward(&tokens).unwrap();
    let size = expected.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    // Bounds of about twice the error that was found.
    for (weights, bound) in [
        (WeightType::F32, 0.0),
        (WeightType::F16, 1e-3),
        (WeightType::Q8_0, 0.02),
        (WeightType::Q6K, 0.06),
        (WeightType::Q4_0, 0.4),
        (WeightType::Q4K, 0.25),
    ] {
        let converted = QuantizedExperts::new(numbers.clone(), weights).unwrap();
        let output = converted
            .fetch(LayerId(0), ExpertId(3))
            .unwrap()
            .forward(&tokens.to_dtype(converted.activations()).unwrap());
        let off = (output.unwrap().to_dtype(DType::F32).unwrap() - &expected).unwrap();
        let error = (off.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap() / size).sqrt();
        assert!(error <= bound, "{weights}: {error}");
    }
    // Back and forth: what is quantized stays as it is.
    let once: Arc<dyn ExpertStore> = Arc::new(QuantizedExperts::new(numbers, WeightType::Q8_0).unwrap());
    let wide: Arc<dyn ExpertStore> = Arc::new(QuantizedExperts::new(once.clone(), WeightType::F32).unwrap());
    let twice = QuantizedExperts::new(wide, WeightType::Q8_0).unwrap();
    let bytes = |store: &dyn ExpertStore| {
        let mut all = Vec::new();
        let keep = &mut |projections: ProjectionBytes<'_>| {
            all = projections.concat();
            Ok(())
        };
        store.with_bytes(LayerId(1), ExpertId(0), keep).unwrap();
        all
    };
    assert_eq!(bytes(&*once), bytes(&twice));
    let narrow = ExpertShape { intermediate: 48, ..SHAPE };
    let numbers = Arc::new(RandomExperts::new(narrow, WeightType::F32, 9).unwrap());
    let error = QuantizedExperts::new(numbers, WeightType::Q8_0).unwrap_err();
    assert_eq!(error.to_string(), "rows of 48 weights are no multiple of the 32 of a block of q8_0");
}

#[test]
fn read_ahead_drops_what_it_has_no_room_for_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("experts.gguf");
    write_gguf(&RandomExperts::new(SHAPE, WeightType::F32, 1).unwrap(), &path, &mut |_, _| {}).unwrap();
    let store: Arc<dyn ExpertStore> = Arc::new(MappedStore::open_gguf(&[path]).unwrap());
    let ahead = ReadAhead::new(&store, 2, 4).unwrap();
    let mut queued = 0;
    for (layer, expert) in (0..2000u16).map(|wish| (LayerId(wish % 2), ExpertId(wish % 4))) {
        queued += usize::from(ahead.want(layer, expert).unwrap());
    }
    assert!(queued >= 4);
    assert_eq!(
        ahead.want(LayerId(0), ExpertId(4)).unwrap_err().to_string(),
        "layer 0: expert 4 is out of range, the layer has 4"
    );
    drop(ahead);
    // Nobody but this test holds the store: the threads have ended.
    assert_eq!(Arc::strong_count(&store), 1);
    assert!(matches!(ReadAhead::new(&store, 0, 4), Err(OffloadError::Size { .. })));
    assert!(matches!(ReadAhead::new(&store, 1, 0), Err(OffloadError::Size { .. })));
}
