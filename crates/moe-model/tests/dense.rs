//! The dense forward pass computes what the ragged one computes, and its gradients are right.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use common::{Fixture, GQA, MHA, assert_close, folder};
use moe_model::{DenseOutput, KvCache, Olmoe, OlmoeConfig, OlmoeParams, RouterOutput, resident_experts};
use moe_trace::{IgnoreRouting, Phase};

/// Two rows of one length made of a fixture's prompts.
fn rows(fixture: &Fixture) -> [Vec<u32>; 2] {
    let tokens = fixture.prompt(0);
    [tokens[..11].to_vec(), tokens[12..23].to_vec()]
}

#[test]
fn dense_forward_equals_ragged_forward() {
    for name in [MHA, GQA] {
        let fixture = Fixture::load(name);
        let rows = rows(&fixture);
        let output = fixture.model.forward_dense(&Tensor::new(rows.to_vec(), &Device::Cpu).unwrap()).unwrap();
        for (index, row) in rows.iter().enumerate() {
            let (logits, events) = fixture.prefill(row);
            let difference = assert_close(&output.logits.get(index).unwrap(), &logits, 1e-5);
            println!("{name}, row {index}: dense logits differ by {difference:.1e}");
            for (RouterOutput { experts, .. }, event) in output.routers.iter().zip(&events.routed) {
                let slots = event.experts.len();
                assert_eq!(experts[index * slots..(index + 1) * slots], event.experts);
            }
        }
    }
}

#[test]
fn router_tensors_match_transformers() {
    let fixture = Fixture::load(MHA);
    let output = fixture.model.forward_dense(&Tensor::new(vec![fixture.prompt(0)], &Device::Cpu).unwrap()).unwrap();
    let logits: Vec<Tensor> = output.routers.iter().map(|router| router.logits.clone().unwrap()).collect();
    assert_close(&Tensor::stack(&logits, 0).unwrap(), &fixture.tensor("router_logits", 0), 1e-5);
    for router in &output.routers {
        let totals = common::values(&router.probs.sum(1).unwrap());
        assert!(totals.iter().all(|total| (total - 1.0).abs() < 1e-5));
    }
}

/// A model of variables with the weights of a fixture.
fn trainable(name: &str) -> (VarMap, Olmoe) {
    let checkpoint = moe_model::Checkpoint::open(folder(name)).unwrap();
    let stored = checkpoint.var_builder(DType::F32, &Device::Cpu).unwrap();
    let map = VarMap::new();
    for spec in checkpoint.config().tensors() {
        let var = Var::from_tensor(&stored.get(spec.shape, &spec.name).unwrap()).unwrap();
        map.data().lock().unwrap().insert(spec.name, var);
    }
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let experts = resident_experts(checkpoint.config(), &vb).unwrap();
    (map, Olmoe::new(checkpoint.config(), &vb, Arc::new(experts)).unwrap())
}

/// A scalar of everything that a dense pass returns; smooth while the routers choose the same experts.
fn loss(output: DenseOutput) -> Tensor {
    let mut loss = output.logits.sqr().unwrap().mean_all().unwrap();
    for router in output.routers {
        loss = (loss + router.probs.sqr().unwrap().mean_all().unwrap()).unwrap();
        loss = (loss + (router.logits.unwrap().sqr().unwrap().mean_all().unwrap() * 0.1).unwrap()).unwrap();
    }
    loss
}

/// Experts of all routers.
fn chosen(output: &DenseOutput) -> Vec<u16> {
    output.routers.iter().flat_map(|router| router.experts.clone()).collect()
}

/// Central differences along a tensor's own gradient, where the slope is the gradient's norm.
#[test]
fn gradients_agree_with_finite_differences() {
    for name in [MHA, GQA] {
        let (map, model) = trainable(name);
        let tokens = Tensor::new(rows(&Fixture::load(name)).to_vec(), &Device::Cpu).unwrap();
        let output = model.forward_dense(&tokens).unwrap();
        let experts = chosen(&output);
        let expert = usize::from(output.routers[1].experts[0]);
        let grads = loss(output).backward().unwrap();
        for tensor in [
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.k_norm.weight",
            "model.layers.0.self_attn.v_proj.weight",
            "model.layers.1.input_layernorm.weight",
            "model.layers.1.mlp.gate.weight",
            &format!("model.layers.1.mlp.experts.{expert}.gate_proj.weight"),
            &format!("model.layers.1.mlp.experts.{expert}.down_proj.weight"),
        ] {
            let var = map.data().lock().unwrap()[tensor].clone();
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{tensor} has no gradient")).clone();
            let start = var.as_tensor().copy().unwrap();
            let norm = f64::from(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
            let step = 5e-4;
            let at = |sign: f64| {
                var.set(&(&start + (&grad * (sign * step / norm)).unwrap()).unwrap()).unwrap();
                let output = model.forward_dense(&tokens).unwrap();
                assert_eq!(chosen(&output), experts, "{name}, {tensor}: the step is too long");
                f64::from(loss(output).to_scalar::<f32>().unwrap())
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
            var.set(&start).unwrap();
            println!("{name}, {tensor}: slope {slope:.5}, norm of the gradient {norm:.5}");
            assert!((slope / norm - 1.0).abs() < 2e-2, "{tensor}: slope {slope}, norm of the gradient {norm}");
        }
    }
}

/// A new model of small sizes, and its variables.
fn new_model(num_experts: usize, num_experts_per_tok: usize) -> (VarMap, Olmoe) {
    let small = OlmoeParams {
        vocab_size: 31,
        hidden_size: 16,
        intermediate_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        eos_token_ids: vec![],
        num_experts,
        num_experts_per_tok,
        initializer_range: 0.2,
        ..OlmoeParams::default()
    };
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let config = OlmoeConfig::new(small).unwrap();
    let experts = resident_experts(&config, &vb).unwrap();
    let model = Olmoe::new(&config, &vb, Arc::new(experts)).unwrap();
    (map, model)
}

#[test]
fn new_variables_train_from_a_variable_map() {
    let (map, model) = new_model(4, 2);
    let mut names: Vec<String> = map.data().lock().unwrap().keys().cloned().collect();
    let mut specs: Vec<String> = model.config().tensors().into_iter().map(|spec| spec.name).collect();
    names.sort();
    specs.sort();
    assert_eq!(names, specs);

    let tokens = Tensor::new(&[[1u32, 2, 3, 4]], &Device::Cpu).unwrap();
    let loss = || loss(model.forward_dense(&tokens).unwrap());
    let before = loss();
    let grads = before.backward().unwrap();
    for var in map.all_vars() {
        if let Some(grad) = grads.get(&var) {
            var.set(&(var.as_tensor() - (grad * 0.01).unwrap()).unwrap()).unwrap();
        }
    }
    let (before, after) = (before.to_scalar::<f32>().unwrap(), loss().to_scalar::<f32>().unwrap());
    assert!(after < before, "{after} is not below {before}");
}

/// A prompt of several blocks of queries; one expert, so that rounding cannot change the routing.
#[test]
fn long_prefills_equal_the_dense_forward() {
    let (map, model) = new_model(1, 1);
    let tokens: Vec<u32> = (0..1300u32).map(|i| i * i % 31).collect();
    let expected = model.forward_dense(&Tensor::new(vec![tokens.clone()], &Device::Cpu).unwrap()).unwrap();
    let expected = expected.logits.squeeze(0).unwrap();

    let tensors: HashMap<String, Tensor> = {
        let data = map.data().lock().unwrap();
        data.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
    };
    for (dtype, bound) in [(DType::F32, 1e-5), (DType::F16, 0.01)] {
        let vb = VarBuilder::from_tensors(tensors.clone(), dtype, &Device::Cpu);
        let experts = resident_experts(model.config(), &vb).unwrap();
        let model = Olmoe::new(model.config(), &vb, Arc::new(experts)).unwrap();
        let mut cache = KvCache::new(model.config());
        let mut part = |tokens: &[u32], phase| common::run(&model, tokens, &mut cache, phase, &mut IgnoreRouting);
        let logits = [
            part(&tokens[..7], Phase::Prefill),
            part(&tokens[7..1298], Phase::Prefill),
            part(&tokens[1298..1299], Phase::Decode),
            part(&tokens[1299..], Phase::Decode),
        ];
        let difference = assert_close(&Tensor::cat(&logits, 0).unwrap(), &expected, bound);
        println!("{dtype:?}, 1300 tokens: logits differ by {difference:.1e}");
    }
}
