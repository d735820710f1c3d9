//! Layers that OLMoE does not have, their files, and what cannot be built.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use moe_model::{Checkpoint, DenseOptions, KvCache, Olmoe, OlmoeConfig, OlmoeParams, RouterKind};
use moe_offload::{MappedStore, OffloadOptions, OffloadedExperts};
use moe_trace::{DomainId, ExpertId, IgnoreRouting, LayerId, Phase, RouterObserver, RoutingEvent};

use crate::common;
use crate::common::{assert_close, run};
use crate::models::{EXPERTS, LENGTH, TOP_K, batch, build, dense, from_tensors, params, variants, write_folder};

#[test]
fn folders_of_variants_open_and_compute_the_same() {
    for params in variants() {
        let (map, model) = build(params);
        let mut names: Vec<String> = map.data().lock().unwrap().keys().cloned().collect();
        let mut specs: Vec<String> = model.config().tensors().into_iter().map(|spec| spec.name).collect();
        names.sort();
        specs.sort();
        assert_eq!(names, specs);
        let values: usize = map.all_vars().iter().map(|var| var.elem_count()).sum();
        assert_eq!(model.config().parameters(), values);

        let folder = write_folder(&map, model.config());
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.config(), model.config());
        let loaded = checkpoint.load_resident(DType::F32, &Device::Cpu).unwrap();
        let (tokens, domains) = batch();
        let logits = |model: &Olmoe| {
            let mut cache = KvCache::new(model.config()).in_domain(domains[0]);
            common::values(&run(model, &tokens[0], &mut cache, Phase::Prefill, &mut IgnoreRouting))
        };
        assert_eq!(logits(&loaded), logits(&model));
        let half = checkpoint.load_resident(DType::BF16, &Device::Cpu).unwrap();
        assert!(logits_are_finite(&half, &tokens[0], domains[0]));
    }
}

fn logits_are_finite(model: &Olmoe, tokens: &[u32], domain: DomainId) -> bool {
    let mut cache = KvCache::new(model.config()).in_domain(domain);
    let logits = run(model, tokens, &mut cache, Phase::Prefill, &mut IgnoreRouting).to_dtype(DType::F32).unwrap();
    common::values(&logits).iter().all(|logit| logit.is_finite())
}

#[test]
fn ids_of_moe_layers_skip_the_dense_ones() {
    let (_, model) = build(params(RouterKind::Softmax));
    let geometry = model.config().geometry();
    let numbers: Vec<u32> = geometry.moe_layers().iter().map(|layer| layer.model_layer).collect();
    assert_eq!((numbers, model.config().expert_shape().layers), (vec![0, 2, 3], 3));
    let [gate, ..] = model.config().expert_names(LayerId(1), ExpertId(7));
    assert_eq!(gate, "model.layers.2.mlp.experts.7.gate_proj.weight");
}

/// Experts of a variant that are loaded from its file when they are wanted; dense layers do not count.
#[test]
fn offloading_changes_no_bit_of_a_variant() {
    let (map, model) = build(params(RouterKind::Sigmoid));
    let folder = write_folder(&map, model.config());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let names = |layer, expert| checkpoint.expert_locations(layer, expert);
    let shape = checkpoint.config().expert_shape();
    let store = MappedStore::open(checkpoint.files(), shape, DType::F32, names).unwrap();
    let bank = OffloadedExperts::new(Arc::new(store), &Device::Cpu, OffloadOptions::slots(TOP_K)).unwrap();
    let vb = checkpoint.var_builder(DType::F32, &Device::Cpu).unwrap();
    let offloaded = Olmoe::new(checkpoint.config(), &vb, Arc::new(bank)).unwrap();
    let (rows, _) = batch();
    assert_eq!(
        common::values(&common::prefill(&offloaded, &rows[0])),
        common::values(&common::prefill(&model, &rows[0]))
    );
}

/// Routers that draw experts have no logits, however the model is run.
#[test]
fn only_routers_with_a_gate_report_logits() {
    struct Logits(Vec<Option<usize>>);
    impl RouterObserver for Logits {
        fn routed(&mut self, event: &RoutingEvent<'_>) {
            self.0.push(event.logits.map(<[f32]>::len));
        }

        fn wants_logits(&self) -> bool {
            true
        }
    }
    for router in RouterKind::ALL {
        let (_, model) = build(params(router));
        let (rows, domains) = batch();
        let mut ragged = Logits(Vec::new());
        let mut cache = KvCache::new(model.config()).in_domain(domains[0]);
        run(&model, &rows[0], &mut cache, Phase::Prefill, &mut ragged);
        let mut whole = Logits(Vec::new());
        let tokens = Tensor::new(vec![rows[0].clone()], &Device::Cpu).unwrap();
        let options = DenseOptions { domains: Some(&domains[..1]), capacity_factor: None };
        let output = model.forward_dense_with(&tokens, &options).unwrap();
        output.report(&tokens, &mut whole).unwrap();
        let expected = vec![router.has_logits().then_some(LENGTH * EXPERTS); 3];
        assert_eq!((ragged.0, whole.0), (expected.clone(), expected), "{router}");
    }
}

/// One routed expert of weight 1 is a dense MLP, and a shared expert beside it with the same weights doubles it.
#[test]
fn dense_and_shared_mlps_are_experts_that_everyone_uses() {
    let plain = OlmoeParams {
        num_hidden_layers: 2,
        num_experts: 1,
        num_experts_per_tok: 1,
        norm_topk_prob: true,
        n_shared_experts: 0,
        mlp_only_layers: vec![],
        dense_intermediate_size: 0,
        ..params(RouterKind::Softmax)
    };
    let (map, model) = build(plain.clone());
    assert!(!model.config().params().is_variant());
    let data = map.data().lock().unwrap();
    let mut tensors: HashMap<String, Tensor> =
        data.iter().map(|(name, var)| (name.clone(), var.copy().unwrap())).collect();
    for projection in ["gate", "up", "down"] {
        let name = |mlp: &str| format!("model.layers.0.mlp.{mlp}{projection}_proj.weight");
        let expert = tensors[&name("experts.0.")].clone();
        tensors.insert(name(""), expert.clone());
        tensors.insert(name("shared_experts."), expert.clone());
        tensors.insert(name("shared_experts.").replace("layers.0", "layers.1"), {
            let other = &tensors[&name("experts.0.").replace("layers.0", "layers.1")];
            other.zeros_like().unwrap()
        });
    }
    let logits = |model: &Olmoe| dense(model, None).logits;
    let dense_first = OlmoeParams { mlp_only_layers: vec![0], dense_intermediate_size: 8, ..plain.clone() };
    assert_close(&logits(&from_tensors(dense_first, &tensors)), &logits(&model), 1e-6);

    // Of the second layer the shared expert is zero.
    let shared = from_tensors(OlmoeParams { n_shared_experts: 1, ..plain.clone() }, &tensors);
    let down = "model.layers.0.mlp.experts.0.down_proj.weight";
    tensors.insert(down.to_owned(), (&tensors[down] * 2.0).unwrap());
    assert_close(&logits(&shared), &logits(&from_tensors(plain, &tensors)), 1e-6);
}

#[test]
fn variants_that_cannot_be_built() {
    let message = |params: OlmoeParams| OlmoeConfig::new(params).unwrap_err().to_string();
    let reference = params(RouterKind::Reference);
    let limit = "must be 1..=4, each domain needs 2 of 8 experts for itself";
    assert_eq!(message(OlmoeParams { num_domains: 0, ..reference.clone() }), format!("num_domains is 0, {limit}"));
    assert_eq!(message(OlmoeParams { num_domains: 5, ..reference.clone() }), format!("num_domains is 5, {limit}"));
    let softmax = params(RouterKind::Softmax);
    let domains = message(OlmoeParams { num_domains: 2, ..softmax.clone() });
    assert_eq!(domains, "num_domains is 2, must be 0 for the router softmax");
    let seed = message(OlmoeParams { router_seed: 2, ..softmax.clone() });
    assert_eq!(seed, "router_seed is 2, must be 0 for the router softmax");
    let dense = |layers: &[usize]| message(OlmoeParams { mlp_only_layers: layers.to_vec(), ..softmax.clone() });
    assert_eq!(dense(&[4]), "mlp_only_layers is 4, must be below num_hidden_layers 4");
    assert_eq!(dense(&[2, 1]), "mlp_only_layers is 1, must be in ascending order");
    assert_eq!(dense(&[1, 1]), "mlp_only_layers is 1, must be in ascending order");
    assert_eq!(dense(&[0, 1, 2, 3]), "mlp_only_layers is all 4 layers, must leave an MoE layer");
    assert_eq!(dense(&[]), "dense_intermediate_size is 24, must be 0 without mlp_only_layers");
    let width = message(OlmoeParams { dense_intermediate_size: 0, ..softmax.clone() });
    assert_eq!(width, "dense_intermediate_size is 0, must be at least 1");
    let shared = message(OlmoeParams { n_shared_experts: 70_000, ..softmax });
    assert_eq!(shared, "n_shared_experts is 70000, must be at most 65535");
}

/// No program may take a variant for OLMoE.
#[test]
fn files_name_the_variants() {
    let (map, model) = build(params(RouterKind::Sigmoid));
    let folder = write_folder(&map, model.config());
    let mut json = model.config().to_json();
    assert_eq!((&json["model_type"], &json["router"]), (&"olmoe_variant".into(), &"sigmoid".into()));
    let path = folder.path().join("config.json");
    let mut error = |field: &str, value| {
        json[field] = value;
        fs::write(&path, json.to_string()).unwrap();
        Checkpoint::open(folder.path()).unwrap_err().to_string().replace(&format!("{}: ", path.display()), "")
    };
    let expected = "model_type is olmoe_variant, must be olmoe for the architecture OlmoeForCausalLM";
    assert_eq!(error("architectures", serde_json::json!(["OlmoeForCausalLM"])), expected);
    let expected = "model_type is olmoe, must be olmoe_variant for what OLMoE lacks";
    assert_eq!(error("model_type", serde_json::json!("olmoe")), expected);
    let plain = OlmoeConfig::new(OlmoeParams::default()).unwrap().to_json();
    assert_eq!((&plain["model_type"], plain.get("router")), (&"olmoe".into(), None));
}
