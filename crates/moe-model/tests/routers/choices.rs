//! Choices and weights against their definitions, and one result whichever way the model is run.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use moe_model::{Chunk, DenseOptions, KvCache, LogitsAt, OlmoeParams, RouterKind, RouterOutput, reference_experts};
use moe_trace::{
    DomainId, EMPTY_SLOT, ExpertId, IgnoreRouting, MemoryTrace, Phase, Recorder, RouterObserver, RoutingSource,
};

use crate::common;
use crate::common::{Events, assert_close, run};
use crate::models::{DOMAINS, EXPERTS, LENGTH, TOP_K, batch, build, dense, params, variants};

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
    let rows = router.logits.as_ref().map(|logits| logits.to_vec2::<f32>().unwrap());
    assert_eq!(rows.is_some(), kind.has_logits());
    let rows = rows.unwrap_or_else(|| vec![vec![0.0; EXPERTS]; 4 * LENGTH]);
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
