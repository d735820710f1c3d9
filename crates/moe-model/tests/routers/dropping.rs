//! Experts of limited capacity.

use candle_core::{Device, Tensor};
use moe_model::{OlmoeParams, RouterKind};
use moe_trace::{EMPTY_SLOT, LayerId, MemoryTrace, Recorder, RouterObserver, RoutingSource};

use crate::common;
use crate::common::assert_close;
use crate::models::{EXPERTS, LENGTH, TOP_K, batch, build, dense, params};

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
