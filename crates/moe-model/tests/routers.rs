//! Every router, and the layers that OLMoE does not have: choices against their definitions, one result whichever way
//! the model is run, gradients, files.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use common::{Events, assert_close, run};
use moe_model::{
    Checkpoint, Chunk, DenseOptions, DenseOutput, KvCache, LogitsAt, Olmoe, OlmoeConfig, OlmoeParams, RouterKind,
    RouterOutput, TensorKind, reference_experts, resident_experts,
};
use moe_offload::{MappedStore, OffloadOptions, OffloadedExperts};
use moe_trace::{
    DomainId, EMPTY_SLOT, ExpertId, IgnoreRouting, LayerId, MemoryTrace, Phase, Recorder, RouterObserver, RoutingSource,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const EXPERTS: usize = 8;
const TOP_K: usize = 2;
const DOMAINS: usize = 3;
const LENGTH: usize = 12;

/// Four layers, of which one is dense, and a shared expert.
fn params(router: RouterKind) -> OlmoeParams {
    OlmoeParams {
        vocab_size: 31,
        hidden_size: 16,
        intermediate_size: 8,
        num_hidden_layers: 4,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        num_experts: EXPERTS,
        num_experts_per_tok: TOP_K,
        max_position_embeddings: 64,
        initializer_range: 0.3,
        eos_token_ids: vec![],
        router,
        router_seed: if router.has_logits() { 0 } else { 5 },
        num_domains: if router == RouterKind::Reference { DOMAINS } else { 0 },
        n_shared_experts: 1,
        mlp_only_layers: vec![1],
        dense_intermediate_size: 24,
        ..OlmoeParams::default()
    }
}

/// A model of seeded variables; the biases of a sigmoid router are not zero.
fn build(params: OlmoeParams) -> (VarMap, Olmoe) {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
    let config = OlmoeConfig::new(params).unwrap();
    let experts = resident_experts(&config, &vb).unwrap();
    let model = Olmoe::new(&config, &vb, Arc::new(experts)).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for spec in config.tensors() {
        let var = map.data().lock().unwrap()[&spec.name].clone();
        let mut fill = |bound: f32| {
            let values: Vec<f32> = (0..var.elem_count()).map(|_| random.random_range(-bound..bound)).collect();
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        };
        match spec.kind {
            TensorKind::Matrix => fill(0.5),
            TensorKind::Norm => assert!(var.to_vec1::<f32>().unwrap().iter().all(|&gain| gain == 1.0)),
            TensorKind::Bias => {
                assert_eq!(var.to_vec1::<f32>().unwrap(), [0.0; EXPERTS]);
                fill(0.3);
            }
        }
    }
    (map, model)
}

/// Four sequences and their domains.
fn batch() -> (Vec<Vec<u32>>, Vec<DomainId>) {
    let rows = (0..4).map(|row| (0u32..).take(LENGTH).map(|i| (i * i * 7 + 5 * row) % 31).collect()).collect();
    (rows, [0, 1, 2, 1].map(DomainId).to_vec())
}

fn dense(model: &Olmoe, capacity_factor: Option<f64>) -> DenseOutput {
    let (rows, domains) = batch();
    let options = DenseOptions { domains: Some(&domains), capacity_factor };
    model.forward_dense_with(&Tensor::new(rows, &Device::Cpu).unwrap(), &options).unwrap()
}

/// Both ways to weigh, for every kind.
fn variants() -> impl Iterator<Item = OlmoeParams> {
    let weighed =
        |params: &OlmoeParams| [false, true].map(|norm| OlmoeParams { norm_topk_prob: norm, ..params.clone() });
    RouterKind::ALL.into_iter().flat_map(move |router| weighed(&params(router)))
}

/// The experts with the largest values, ties to the lowest id, with what `weight` says of them; in order of that.
fn naive_top_k(values: &[f32], allowed: impl Fn(usize) -> bool, weight: impl Fn(usize) -> f32) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..values.len()).filter(|&expert| allowed(expert)).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    let mut chosen: Vec<_> = order.into_iter().take(TOP_K).map(|expert| (expert, weight(expert))).collect();
    chosen.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    chosen
}

/// What a router shall choose for each token, from its logits and by its definition.
fn naive_choices(kind: RouterKind, router: &RouterOutput, bias: &[f32]) -> Vec<Vec<(usize, f32)>> {
    let rows = router.logits.to_vec2::<f32>().unwrap();
    let (_, domains) = batch();
    let softmax = |row: &[f32], allowed: &dyn Fn(usize) -> bool| -> Vec<f32> {
        let exp = |expert: usize| if allowed(expert) { row[expert].exp() } else { 0.0 };
        let sum: f32 = (0..EXPERTS).map(exp).sum();
        (0..EXPERTS).map(|expert| exp(expert) / sum).collect()
    };
    if kind == RouterKind::ExpertChoice {
        let probabilities: Vec<_> = rows.iter().map(|row| softmax(row, &|_| true)).collect();
        let mut chosen = vec![Vec::new(); rows.len()];
        for expert in 0..EXPERTS {
            let column = probabilities.iter().map(|row| row[expert]);
            let mut tokens: Vec<(usize, f32)> = column.enumerate().collect();
            tokens.sort_by(|a, b| b.1.total_cmp(&a.1));
            tokens.truncate(rows.len() * TOP_K / EXPERTS);
            tokens.into_iter().for_each(|(token, probability)| chosen[token].push((expert, probability)));
        }
        chosen.iter_mut().for_each(|chosen| chosen.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))));
        return chosen;
    }
    let reference = reference_experts(DOMAINS, 8);
    let choose = |(token, row): (usize, &Vec<f32>)| match kind {
        RouterKind::Softmax | RouterKind::Random => {
            let probabilities = softmax(row, &|_| true);
            naive_top_k(row, |_| true, |expert| probabilities[expert])
        }
        RouterKind::Sigmoid => {
            let sigmoid = |expert: usize| 1.0 / (1.0 + (-row[expert]).exp());
            let biased: Vec<f32> = (0..EXPERTS).map(|expert| sigmoid(expert) + bias[expert]).collect();
            naive_top_k(&biased, |_| true, sigmoid)
        }
        RouterKind::Reference => {
            let experts = &reference[domains[token / LENGTH].index()];
            let allowed = |expert: usize| experts.iter().any(|id| id.index() == expert);
            let probabilities = softmax(row, &allowed);
            naive_top_k(row, allowed, |expert| probabilities[expert])
        }
        _ => unreachable!("drawn without logits"),
    };
    rows.iter().enumerate().map(choose).collect()
}

#[test]
fn choices_and_weights_are_those_of_the_definitions() {
    for params in variants().filter(|params| params.router.has_logits()) {
        let (kind, norm) = (params.router, params.norm_topk_prob);
        let (map, model) = build(params);
        let output = dense(&model, None);
        assert_eq!(output.routers.len(), 3);
        for (router, model_layer) in output.routers.iter().zip([0, 2, 3]) {
            let bias = format!("model.layers.{model_layer}.mlp.gate.e_score_correction_bias");
            let bias = map.data().lock().unwrap().get(&bias).map(|var| var.to_vec1().unwrap()).unwrap_or_default();
            let slots = router.experts.len() / (4 * LENGTH);
            let weights = router.weights.to_vec2::<f32>().unwrap();
            for (token, expected) in naive_choices(kind, router, &bias).iter().enumerate() {
                let experts = &router.experts[token * slots..][..slots];
                let ids: Vec<u16> = expected.iter().map(|&(expert, _)| u16::try_from(expert).unwrap()).collect();
                assert_eq!(experts[..ids.len()], ids, "{kind}, token {token}");
                assert!(experts[ids.len()..].iter().all(|&expert| expert == EMPTY_SLOT));
                let sum: f32 = if norm { expected.iter().map(|&(_, weight)| weight).sum() } else { 1.0 };
                for (weight, (_, expected)) in weights[token].iter().zip(expected) {
                    assert!((weight - expected / sum).abs() < 1e-5, "{kind}: {weight} {}", expected / sum);
                }
            }
            if kind == RouterKind::ExpertChoice {
                assert!(slots > TOP_K, "no token is popular");
            }
            let sums = router.probs.sum(1).unwrap().to_vec1::<f32>().unwrap();
            assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-5), "{kind}");
        }
    }
}

#[test]
fn drawn_experts_know_the_token_or_the_position_and_nothing_else() {
    for kind in [RouterKind::Hash, RouterKind::Position] {
        let (_, model) = build(params(kind));
        let output = dense(&model, None);
        let (rows, _) = batch();
        for router in &output.routers {
            let mut seen = BTreeMap::new();
            for (place, experts) in router.experts.chunks_exact(TOP_K).enumerate() {
                let (row, position) = (place / LENGTH, place % LENGTH);
                let key = if kind == RouterKind::Hash { rows[row][position] as usize } else { position };
                assert_eq!(seen.entry(key).or_insert(experts), &experts, "{kind}");
            }
            let distinct: std::collections::BTreeSet<_> = seen.values().collect();
            assert!(distinct.len() > 4, "{kind}");
            assert!(
                router.weights.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|&weight| weight == 0.5)
            );
        }
        assert_ne!(output.routers[0].experts, output.routers[1].experts);
        // It is the seed that decides, not the weights.
        let other = dense(&build(params(kind)).1, None);
        assert_eq!(other.routers[2].experts, output.routers[2].experts);
        let reseeded = OlmoeParams { router_seed: 6, ..params(kind) };
        assert_ne!(dense(&build(reseeded).1, None).routers[2].experts, output.routers[2].experts);
    }
}

/// Inference in parts equals inference at once and, but for experts that choose tokens, the dense forward.
#[test]
fn every_router_does_the_same_whichever_way_it_is_run() {
    for params in variants() {
        let kind = params.router;
        let (_, model) = build(params);
        let (rows, domains) = batch();
        let output = dense(&model, None);
        for (row, (tokens, &domain)) in rows.iter().zip(&domains).enumerate() {
            let mut cache = KvCache::new(model.config()).in_domain(domain);
            let mut whole = Events::default();
            let expected = run(&model, tokens, &mut cache, Phase::Prefill, &mut whole);
            cache.clear();
            let (mut logits, mut events) = (Vec::new(), Events::default());
            logits.push(run(&model, &tokens[..5], &mut cache, Phase::Prefill, &mut events));
            for token in 5..LENGTH {
                logits.push(run(&model, &tokens[token..=token], &mut cache, Phase::Decode, &mut events));
            }
            assert_close(&Tensor::cat(&logits, 0).unwrap(), &expected, 1e-5);
            for (layer, event) in whole.routed.iter().enumerate() {
                let of_layer = || events.routed.iter().filter(|event| usize::from(event.layer) == layer);
                assert_eq!(of_layer().flat_map(|event| event.experts.clone()).collect::<Vec<_>>(), event.experts);
                let weights: Vec<f32> = of_layer().flat_map(|event| event.weights.clone()).collect();
                assert!(common::difference(&weights, &event.weights) < 1e-5, "{kind}");
                if kind != RouterKind::ExpertChoice {
                    let slots = row * LENGTH * TOP_K..(row + 1) * LENGTH * TOP_K;
                    assert_eq!(event.experts, output.routers[layer].experts[slots]);
                }
            }
            if kind != RouterKind::ExpertChoice {
                assert_close(&expected, &output.logits.get(row).unwrap(), 1e-5);
            }
        }
    }
}

/// The experts of a domain are used in no other: purity is 1.
#[test]
fn the_reference_router_is_pure() {
    let (_, model) = build(params(RouterKind::Reference));
    let (rows, domains) = batch();
    let mut recorder = Recorder::new(MemoryTrace::new(model.config().geometry()));
    let mut caches: Vec<_> = domains.iter().map(|&domain| KvCache::new(model.config()).in_domain(domain)).collect();
    let chunks = rows.iter().zip(&mut caches).enumerate();
    let mut chunks: Vec<_> =
        chunks.map(|(sequence, (tokens, cache))| Chunk { sequence, tokens, cache, phase: Phase::Prefill }).collect();
    model.forward(&mut chunks, LogitsAt::Last, &mut recorder).unwrap();
    (0..rows.len()).for_each(|sequence| recorder.sequence_end(sequence));
    let trace = recorder.finish().unwrap();
    let of_domain = reference_experts(DOMAINS, 8);
    for (index, domain) in domains.iter().enumerate() {
        let sequence = trace.sequence(index).unwrap();
        for layer in model.config().geometry().layer_ids() {
            for token in 0..sequence.len() {
                assert_eq!(sequence.experts(token, layer).count(), TOP_K);
                assert!(sequence.experts(token, layer).all(|expert| of_domain[domain.index()].contains(&expert)));
            }
        }
    }
}

#[test]
fn dropping_never_exceeds_capacity_and_reports_empty_slots() {
    for kind in RouterKind::ALL.into_iter().filter(|&kind| kind != RouterKind::ExpertChoice) {
        let (_, model) = build(params(kind));
        let free = dense(&model, None);
        for (factor, quarters) in [(0.25, 1), (1.0, 4), (1.5, 6), (8.0, 32)] {
            let output = dense(&model, Some(factor));
            let capacity = (quarters * 4 * LENGTH * TOP_K).div_ceil(4 * EXPERTS);
            let mut dropped = 0;
            for router in &output.routers {
                let mut served = [0; EXPERTS];
                for (&chosen, &serving) in router.experts.iter().zip(&router.served) {
                    assert!(serving == chosen || serving == EMPTY_SLOT);
                    dropped += usize::from(serving == EMPTY_SLOT);
                    served.get_mut(usize::from(serving)).into_iter().for_each(|served| *served += 1);
                }
                assert!(served.iter().all(|&served| served <= capacity), "{kind}, {factor}: {served:?}");
                let mut chosen = [0; EXPERTS];
                router.experts.iter().for_each(|&expert| chosen[usize::from(expert)] += 1);
                // No slot is dropped that there was room for.
                assert!(served.iter().zip(chosen).all(|(&served, chosen)| served == chosen.min(capacity)));
            }
            assert_eq!(dropped == 0, factor == 8.0, "{kind}, {factor}");
            assert_eq!(output.routers[0].experts, free.routers[0].experts);
            if factor == 8.0 {
                assert_close(&output.logits, &free.logits, 1e-7);
            }

            let (rows, _) = batch();
            let mut recorder = Recorder::new(MemoryTrace::new(model.config().geometry()));
            output.report(&Tensor::new(rows.clone(), &Device::Cpu).unwrap(), &mut recorder).unwrap();
            (0..rows.len()).for_each(|sequence| recorder.sequence_end(sequence));
            let trace = recorder.finish().unwrap();
            let layers = || (0u16..3).map(LayerId);
            let used = |index: usize| {
                let sequence = trace.sequence(index).unwrap();
                layers()
                    .map(|layer| (0..LENGTH).map(|t| sequence.experts(t, layer).count()).sum::<usize>())
                    .sum::<usize>()
            };
            assert_eq!((0..4).map(used).sum::<usize>(), 3 * 4 * LENGTH * TOP_K - dropped, "{kind}, {factor}");
        }
    }
}

/// A token whose slots are all dropped goes through the residual connection and the shared expert alone.
#[test]
fn what_is_dropped_adds_nothing() {
    let params = OlmoeParams {
        num_hidden_layers: 1,
        mlp_only_layers: vec![],
        dense_intermediate_size: 0,
        ..params(RouterKind::Softmax)
    };
    let (map, model) = build(params);
    let before = dense(&model, Some(1e-9));
    // One token an expert is served; the experts of the others may as well be gone.
    let served = &before.routers[0].served;
    let alone: Vec<usize> =
        (0..4 * LENGTH).filter(|token| served[token * TOP_K..][..TOP_K].iter().all(|&e| e == EMPTY_SLOT)).collect();
    assert!(alone.len() > LENGTH);
    for (name, var) in map.data().lock().unwrap().iter().filter(|(name, _)| name.contains(".experts.")) {
        assert!(name.ends_with("_proj.weight"));
        var.set(&var.zeros_like().unwrap()).unwrap();
    }
    let (before, after) =
        (before.logits.flatten_to(1).unwrap(), dense(&model, Some(1e-9)).logits.flatten_to(1).unwrap());
    for token in alone {
        assert_eq!(common::values(&before.get(token).unwrap()), common::values(&after.get(token).unwrap()));
    }
}

/// A scalar of all that a dense pass returns.
fn loss(output: &DenseOutput) -> Tensor {
    let mut loss = output.logits.sqr().unwrap().mean_all().unwrap();
    for router in &output.routers {
        loss = (loss + router.probs.sqr().unwrap().mean_all().unwrap()).unwrap();
    }
    loss
}

/// Central differences along a tensor's own gradient, where the slope is the gradient's norm.
#[test]
fn gradients_agree_with_finite_differences() {
    for (params, capacity_factor) in variants().zip([None, Some(1.0)].into_iter().cycle()) {
        let (kind, norm) = (params.router, params.norm_topk_prob);
        let capacity_factor = capacity_factor.filter(|_| kind != RouterKind::ExpertChoice);
        let (map, model) = build(params);
        let output = dense(&model, capacity_factor);
        let chosen = |output: &DenseOutput| output.routers.iter().flat_map(|r| r.served.clone()).collect::<Vec<_>>();
        let (experts, grads) = (chosen(&output), loss(&output).backward().unwrap());
        let expert = output.routers[1].served.iter().find(|&&expert| expert != EMPTY_SLOT).unwrap();
        let mut tensors = vec![
            "model.embed_tokens.weight".to_owned(),
            format!("model.layers.2.mlp.experts.{expert}.up_proj.weight"),
            "model.layers.2.mlp.shared_experts.gate_proj.weight".to_owned(),
            "model.layers.1.mlp.down_proj.weight".to_owned(),
        ];
        tensors.extend(kind.has_logits().then(|| "model.layers.2.mlp.gate.weight".to_owned()));
        for tensor in tensors {
            let var = map.data().lock().unwrap()[&tensor].clone();
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{kind}: {tensor} has no gradient")).clone();
            let start = var.as_tensor().copy().unwrap();
            let length = f64::from(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
            // A shorter step where the longer one changes a choice.
            let slope = [1e-3, 3e-4, 1e-4, 3e-5].into_iter().find_map(|step| {
                let at = |sign: f64| {
                    var.set(&(&start + (&grad * (sign * step / length)).unwrap()).unwrap()).unwrap();
                    let output = dense(&model, capacity_factor);
                    (chosen(&output) == experts).then(|| f64::from(loss(&output).to_scalar::<f32>().unwrap()))
                };
                Some((at(1.0)? - at(-1.0)?) / (2.0 * step))
            });
            var.set(&start).unwrap();
            let slope = slope.unwrap_or_else(|| panic!("{kind}, {tensor}: every step changes a choice"));
            assert!((slope / length - 1.0).abs() < 5e-2, "{kind}, {norm}, {tensor}: slope {slope}, norm {length}");
        }
    }
}

/// A folder with the weights of a model of variables.
fn write_folder(map: &VarMap, config: &OlmoeConfig) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    map.save(folder.path().join("model.safetensors")).unwrap();
    fs::write(folder.path().join("config.json"), config.to_json().to_string()).unwrap();
    folder
}

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
    let names = |layer, expert| checkpoint.expert_names(layer, expert);
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

/// A model from tensors.
fn from_tensors(params: OlmoeParams, tensors: &HashMap<String, Tensor>) -> Olmoe {
    let config = OlmoeConfig::new(params).unwrap();
    let vb = VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
    let experts = resident_experts(&config, &vb).unwrap();
    Olmoe::new(&config, &vb, Arc::new(experts)).unwrap()
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
fn a_router_that_needs_the_domain_says_so() {
    let (_, model) = build(params(RouterKind::Reference));
    let forward = |cache: KvCache| {
        let mut cache = cache;
        let chunk = Chunk { sequence: 7, tokens: &[1, 2], cache: &mut cache, phase: Phase::Prefill };
        model.forward(&mut [chunk], LogitsAt::Last, &mut IgnoreRouting).unwrap_err().to_string()
    };
    assert_eq!(forward(KvCache::new(model.config())), "sequence 7: the reference router needs its domain");
    let unknown = "domain 3 is out of range, the reference router has 3";
    assert_eq!(forward(KvCache::new(model.config()).in_domain(DomainId(3))), format!("sequence 7: {unknown}"));
    let tokens = Tensor::new(&[[1u32, 2], [3, 4]], &Device::Cpu).unwrap();
    let dense = |domains, capacity_factor| {
        let options = DenseOptions { domains, capacity_factor };
        model.forward_dense_with(&tokens, &options).unwrap_err().to_string()
    };
    assert_eq!(dense(None, None), "sequence 0: the reference router needs its domain");
    assert_eq!(dense(Some(&[DomainId(0)]), None), "sequence 1: the reference router needs its domain");
    assert_eq!(dense(Some(&[DomainId(0), DomainId(3)]), None), format!("sequence 1: {unknown}"));
    let factor = dense(Some(&[DomainId(0), DomainId(1)]), Some(0.0));
    assert_eq!(factor, "capacity factor is 0, must be positive and finite");
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
    json["architectures"] = serde_json::json!(["OlmoeForCausalLM"]);
    let path = folder.path().join("config.json");
    fs::write(&path, json.to_string()).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    let expected = "model_type is olmoe, must be olmoe_variant for what OLMoE lacks";
    assert_eq!(error, format!("{}: {expected}", path.display()));
    let plain = OlmoeConfig::new(OlmoeParams::default()).unwrap().to_json();
    assert_eq!((&plain["model_type"], plain.get("router")), (&"olmoe".into(), None));
}

#[test]
fn a_recorder_that_asks_gets_the_logits_that_experts_were_chosen_by() {
    let (_, model) = build(params(RouterKind::Softmax));
    let trace = |recorder: Recorder<MemoryTrace>| {
        let mut recorder = recorder;
        let mut cache = KvCache::new(model.config());
        let chunk = Chunk { sequence: 0, tokens: &[3, 1, 4, 1, 5], cache: &mut cache, phase: Phase::Prefill };
        model.forward(&mut [chunk], LogitsAt::Last, &mut recorder).unwrap();
        recorder.sequence_end(0);
        recorder.finish().unwrap()
    };
    let recorder = || Recorder::new(MemoryTrace::new(model.config().geometry()));
    let (asked, not_asked) = (trace(recorder().with_logits()), trace(recorder()));
    assert!(!not_asked.sequence(0).unwrap().has_logits());
    let sequence = asked.sequence(0).unwrap();
    for layer in asked.geometry().layer_ids() {
        for token in 0..sequence.len() {
            let logits: Vec<f32> = sequence.logits(token, layer).unwrap().collect();
            let mut ranked: Vec<usize> = (0..EXPERTS).collect();
            ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            let chosen: Vec<usize> = sequence.experts(token, layer).map(ExpertId::index).collect();
            assert_eq!(chosen, ranked[..TOP_K], "token {token}, {layer}");
        }
    }
}
