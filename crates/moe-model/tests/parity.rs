//! The model computes what `OlmoeForCausalLM` of transformers computes, and the same whichever way it is run.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use common::{DEEPSEEK, Event, Events, Fixture, GQA, MHA, PROMPTS, assert_close, difference, folder, prefill, run};
use moe_model::{
    Checkpoint, Chunk, Finish, GenerateOptions, KvCache, LogitsAt, Olmoe, OlmoeConfig, RouterKind, Sampling, generate,
};
use moe_offload::{MappedStore, OffloadOptions, OffloadedExperts};
use moe_trace::{IgnoreRouting, Phase};
use tempfile::TempDir;

/// Bound on `max |a - b| / max |b|` against transformers, and between ways to run the same tokens.
const CLOSE: f32 = 1e-5;

#[test]
fn prefill_matches_transformers() {
    for name in [MHA, GQA] {
        let fixture = Fixture::load(name);
        for prompt in 0..PROMPTS {
            let (logits, events) = fixture.prefill(&fixture.prompt(prompt));
            let logits = assert_close(&logits, &fixture.tensor("logits", prompt), CLOSE);
            let layers: Vec<u16> = events.routed.iter().map(|event| event.layer).collect();
            assert_eq!(layers, [0, 1, 2]);
            let experts: Vec<u32> =
                events.routed.iter().flat_map(|event| &event.experts).map(|&expert| u32::from(expert)).collect();
            assert_eq!(experts, fixture.ids("router_ids", prompt));
            let weights: Vec<f32> = events.routed.iter().flat_map(|event| event.weights.clone()).collect();
            let weights = difference(&weights, &common::values(&fixture.tensor("router_weights", prompt)));
            assert!(weights < CLOSE, "{weights:e}");
            println!("{name}, prompt {prompt}: logits differ by {logits:.1e}, router weights by {weights:.1e}");
        }
    }
}

/// Feed-forward parts of DeepSeek-V3: a dense first layer, sigmoid routers with biases, shared experts.
#[test]
fn a_variant_matches_the_modules_of_transformers() {
    let fixture = Fixture::load(DEEPSEEK);
    assert_eq!(fixture.model.config().params().router, RouterKind::Sigmoid);
    for prompt in 0..PROMPTS {
        let tokens = fixture.prompt(prompt);
        let (logits, events) = fixture.prefill(&tokens);
        let logits = assert_close(&logits, &fixture.tensor("logits", prompt), CLOSE);
        let experts = events.routed.iter().flat_map(|event| &event.experts);
        assert_eq!(experts.map(|&expert| u32::from(expert)).collect::<Vec<_>>(), fixture.ids("router_ids", prompt));
        let weights: Vec<f32> = events.routed.iter().flat_map(|event| event.weights.clone()).collect();
        let weights = difference(&weights, &common::values(&fixture.tensor("router_weights", prompt)));
        assert!(weights < CLOSE, "{weights:e}");
        println!("{DEEPSEEK}, prompt {prompt}: logits differ by {logits:.1e}, router weights by {weights:.1e}");

        let dense = fixture.model.forward_dense(&Tensor::new(vec![tokens], &Device::Cpu).unwrap()).unwrap();
        assert_close(&dense.logits.squeeze(0).unwrap(), &fixture.tensor("logits", prompt), CLOSE);
        let router_logits: Vec<Tensor> = dense.routers.iter().map(|router| router.logits.clone().unwrap()).collect();
        assert_close(&Tensor::stack(&router_logits, 0).unwrap(), &fixture.tensor("router_logits", prompt), CLOSE);
    }
}

#[test]
fn decode_token_by_token_equals_prefill() {
    for name in [MHA, GQA] {
        let fixture = Fixture::load(name);
        let tokens = fixture.prompt(0);
        let (expected, whole) = fixture.prefill(&tokens);
        // Prefill in two parts, then decode; the second time in a cache that was used before.
        let mut cache = KvCache::new(fixture.model.config());
        for _ in 0..2 {
            cache.clear();
            let (mut logits, mut events) = (Vec::new(), Events::default());
            for part in [0..5, 5..11] {
                logits.push(run(&fixture.model, &tokens[part], &mut cache, Phase::Prefill, &mut events));
            }
            for token in 11..tokens.len() {
                logits.push(run(&fixture.model, &tokens[token..=token], &mut cache, Phase::Decode, &mut events));
            }
            assert_eq!(cache.len(), tokens.len());
            assert_close(&Tensor::cat(&logits, 0).unwrap(), &expected, CLOSE);
            for layer in whole.routed.iter().map(|event| event.layer) {
                assert_eq!(joined(&events.routed, layer), joined(&whole.routed, layer));
            }
        }
    }
}

/// Token ids and experts of a layer's events together.
fn joined(events: &[Event], layer: u16) -> (Vec<u32>, Vec<u16>) {
    let of_layer = || events.iter().filter(|event| event.layer == layer);
    let tokens = of_layer().flat_map(|event| event.token_ids.clone()).collect();
    (tokens, of_layer().flat_map(|event| event.experts.clone()).collect())
}

#[test]
fn ragged_batches_equal_single_sequences() {
    for name in [MHA, GQA] {
        let fixture = Fixture::load(name);
        let config = fixture.model.config();
        let prompts: Vec<Vec<u32>> = (0..PROMPTS).map(|prompt| fixture.prompt(prompt)).collect();
        let mut caches: Vec<KvCache> = prompts.iter().map(|_| KvCache::new(config)).collect();
        let mut step = |tokens: &[Vec<u32>], phase, at| {
            let chunks = tokens.iter().zip(&mut caches).enumerate();
            let mut chunks: Vec<_> =
                chunks.map(|(sequence, (tokens, cache))| Chunk { sequence, tokens, cache, phase }).collect();
            let mut events = Events::default();
            (fixture.model.forward(&mut chunks, at, &mut events).unwrap(), events)
        };
        let (logits, events) = step(&prompts, Phase::Prefill, LogitsAt::All);
        let order: Vec<(u16, usize)> = events.routed.iter().map(|event| (event.layer, event.sequence)).collect();
        assert_eq!(order, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]);
        for (sequence, prompt) in prompts.iter().enumerate() {
            let (alone, alone_events) = fixture.prefill(prompt);
            assert_close(&logits[sequence], &alone, CLOSE);
            let of_sequence = events.routed.iter().filter(|event| event.sequence == sequence);
            for (event, alone) in of_sequence.zip(&alone_events.routed) {
                assert_eq!((&event.experts, &event.token_ids), (&alone.experts, prompt));
            }
        }
        let next = vec![vec![7], vec![11], vec![13]];
        let (logits, events) = step(&next, Phase::Decode, LogitsAt::Last);
        assert!(events.routed.iter().all(|event| event.phase == Phase::Decode));
        for ((prompt, next), logits) in prompts.iter().zip(&next).zip(&logits) {
            let alone = prefill(&fixture.model, &[prompt.as_slice(), next].concat());
            assert_close(logits, &alone.narrow(0, prompt.len(), 1).unwrap(), CLOSE);
        }
    }
}

#[test]
fn greedy_generation_matches_transformers() {
    for name in [MHA, GQA] {
        let fixture = Fixture::load(name);
        let prompts: Vec<Vec<u32>> = (0..PROMPTS).map(|prompt| fixture.prompt(prompt)).collect();
        let options =
            GenerateOptions { max_new_tokens: 12, sampler: Sampling::Greedy, seeds: vec![], stop_tokens: vec![] };
        let generated = generate(&fixture.model, &prompts, &options, &mut IgnoreRouting, |_, _| {}).unwrap();
        for (prompt, generation) in generated.sequences.iter().enumerate() {
            assert_eq!(generation.tokens, fixture.ids("generated", prompt));
            assert_eq!(generation.finish, Finish::MaxNewTokens);
        }
    }
}

#[test]
fn both_generations_of_config_json_read_the_same() {
    let new = OlmoeConfig::from_file(folder(MHA).join("config.json")).unwrap();
    assert_eq!(OlmoeConfig::from_file(folder(MHA).join("config.v4.json")).unwrap(), new);
    assert_eq!((new.params().rope_theta, new.params().norm_topk_prob), (10000.0, false));
    let gqa = OlmoeConfig::from_file(folder(GQA).join("config.json")).unwrap();
    let params = gqa.params();
    assert_eq!((params.rope_theta, params.clip_qkv, params.num_key_value_heads), (500.0, Some(1.5), 2));
    assert!(params.norm_topk_prob && params.tie_word_embeddings);
    assert_eq!(params.eos_token_ids, [2]);
}

/// Rounding flips near ties of the routers, so that only tokens with the same experts can be compared.
#[test]
fn half_precision_stays_near_single_precision() {
    let checkpoint = Checkpoint::open(folder(MHA)).unwrap();
    let fixture = Fixture::load(MHA);
    let tokens = fixture.prompt(1);
    let (expected, expected_events) = fixture.prefill(&tokens);
    for (dtype, bound) in [(DType::F16, 0.005), (DType::BF16, 0.04)] {
        let model = checkpoint.load_resident(dtype, &Device::Cpu).unwrap();
        let mut events = Events::default();
        let logits = run(&model, &tokens, &mut KvCache::new(model.config()), Phase::Prefill, &mut events);
        assert_eq!(logits.dtype(), dtype);
        assert_eq!(joined(&events.routed, 2), joined(&expected_events.routed, 2));
        println!("{dtype:?}: logits differ by {:.1e}", assert_close(&logits, &expected, bound));
    }
}

/// A folder of a fixture whose experts are stacked, as transformers 5 saves them with `save_original_format=False`.
fn stacked_copy(name: &str) -> TempDir {
    let copy = TempDir::new().unwrap();
    let checkpoint = Checkpoint::open(folder(name)).unwrap();
    let mut tensors: HashMap<String, Tensor> = checkpoint
        .files()
        .iter()
        .flat_map(|file| candle_core::safetensors::load(file, &Device::Cpu).unwrap())
        .collect();
    let config = checkpoint.config();
    for (layer, moe) in config.geometry().layer_ids().zip(config.geometry().moe_layers()) {
        let (mut gates_and_ups, mut downs) = (Vec::new(), Vec::new());
        for expert in config.geometry().expert_ids() {
            let [gate, up, down] = config.expert_names(layer, expert).map(|name| tensors.remove(&name).unwrap());
            gates_and_ups.push(Tensor::cat(&[gate, up], 0).unwrap());
            downs.push(down);
        }
        let experts = format!("model.layers.{}.mlp.experts", moe.model_layer);
        tensors.insert(format!("{experts}.gate_up_proj"), Tensor::stack(&gates_and_ups, 0).unwrap());
        tensors.insert(format!("{experts}.down_proj"), Tensor::stack(&downs, 0).unwrap());
    }
    candle_core::safetensors::save(&tensors, copy.path().join("model.safetensors")).unwrap();
    fs::copy(folder(name).join("config.json"), copy.path().join("config.json")).unwrap();
    copy
}

#[test]
fn stacked_experts_compute_what_separate_ones_compute() {
    for name in [MHA, GQA, DEEPSEEK] {
        let fixture = Fixture::load(name);
        let expected = common::values(&fixture.prefill(&fixture.prompt(0)).0);
        let copy = stacked_copy(name);
        let checkpoint = Checkpoint::open(copy.path()).unwrap();
        let resident = checkpoint.load_resident(DType::F32, &Device::Cpu).unwrap();
        assert_eq!(common::values(&prefill(&resident, &fixture.prompt(0))), expected, "{name}, resident");

        let shape = checkpoint.config().expert_shape();
        let locations = |layer, expert| checkpoint.expert_locations(layer, expert);
        let store = MappedStore::open(checkpoint.files(), shape, DType::F32, locations).unwrap();
        let bank = OffloadedExperts::new(Arc::new(store), &Device::Cpu, OffloadOptions::slots(3)).unwrap();
        let vb = checkpoint.var_builder(DType::F32, &Device::Cpu).unwrap();
        let offloaded = Olmoe::new(checkpoint.config(), &vb, Arc::new(bank)).unwrap();
        assert_eq!(common::values(&prefill(&offloaded, &fixture.prompt(0))), expected, "{name}, mapped");

        let half = checkpoint.load_resident(DType::BF16, &Device::Cpu).unwrap();
        let separate = Checkpoint::open(folder(name)).unwrap().load_resident(DType::BF16, &Device::Cpu).unwrap();
        assert_eq!(
            common::values(&prefill(&half, &fixture.prompt(0))),
            common::values(&prefill(&separate, &fixture.prompt(0)))
        );
    }
}

#[test]
fn stacks_of_another_shape_are_refused() {
    let copy = stacked_copy(MHA);
    let file = copy.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let error = |tensors: &HashMap<String, Tensor>| {
        candle_core::safetensors::save(tensors, &file).unwrap();
        Checkpoint::open(copy.path()).unwrap_err().to_string().replace(&format!("{}: ", file.display()), "")
    };
    let name = "model.layers.1.mlp.experts.gate_up_proj";
    let stack = tensors.remove(name).unwrap();
    assert_eq!(error(&tensors), format!("tensor {name} is missing"));
    tensors.insert(name.to_owned(), stack.narrow(0, 0, 7).unwrap());
    assert_eq!(error(&tensors), format!("tensor {name} has shape [7, 32, 32], expected [8, 32, 32]"));
    // gpt-oss keeps a stack the other way round.
    tensors.insert(name.to_owned(), stack);
    let down = "model.layers.1.mlp.experts.down_proj";
    tensors.insert(down.to_owned(), tensors[down].transpose(1, 2).unwrap().contiguous().unwrap());
    assert_eq!(error(&tensors), format!("tensor {down} has shape [8, 16, 32], expected [8, 32, 16]"));
}
