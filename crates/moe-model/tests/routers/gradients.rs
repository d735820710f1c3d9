//! Gradients through every router.

use candle_core::Tensor;
use moe_model::{DenseOutput, RouterKind};
use moe_trace::EMPTY_SLOT;

use crate::models::{build, dense, variants};

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
