//! Small models of every router, with a dense layer and a shared expert.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use moe_model::{DenseOptions, DenseOutput, Olmoe, OlmoeConfig, OlmoeParams, RouterKind, TensorKind, resident_experts};
use moe_trace::DomainId;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub(crate) const EXPERTS: usize = 8;
pub(crate) const TOP_K: usize = 2;
pub(crate) const DOMAINS: usize = 3;
pub(crate) const LENGTH: usize = 12;

/// Four layers, of which one is dense, and a shared expert.
pub(crate) fn params(router: RouterKind) -> OlmoeParams {
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
pub(crate) fn build(params: OlmoeParams) -> (VarMap, Olmoe) {
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
pub(crate) fn batch() -> (Vec<Vec<u32>>, Vec<DomainId>) {
    let rows = (0..4).map(|row| (0u32..).take(LENGTH).map(|i| (i * i * 7 + 5 * row) % 31).collect()).collect();
    (rows, [0, 1, 2, 1].map(DomainId).to_vec())
}

pub(crate) fn dense(model: &Olmoe, capacity_factor: Option<f64>) -> DenseOutput {
    let (rows, domains) = batch();
    let options = DenseOptions { domains: Some(&domains), capacity_factor };
    model.forward_dense_with(&Tensor::new(rows, &Device::Cpu).unwrap(), &options).unwrap()
}

/// Both ways to weigh, for every kind.
pub(crate) fn variants() -> impl Iterator<Item = OlmoeParams> {
    let weighed =
        |params: &OlmoeParams| [false, true].map(|norm| OlmoeParams { norm_topk_prob: norm, ..params.clone() });
    RouterKind::ALL.into_iter().flat_map(move |router| weighed(&params(router)))
}

/// A folder with the weights of a model of variables.
pub(crate) fn write_folder(map: &VarMap, config: &OlmoeConfig) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    map.save(folder.path().join("model.safetensors")).unwrap();
    fs::write(folder.path().join("config.json"), config.to_json().to_string()).unwrap();
    folder
}

/// A model from tensors.
pub(crate) fn from_tensors(params: OlmoeParams, tensors: &HashMap<String, Tensor>) -> Olmoe {
    let config = OlmoeConfig::new(params).unwrap();
    let vb = VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
    let experts = resident_experts(&config, &vb).unwrap();
    Olmoe::new(&config, &vb, Arc::new(experts)).unwrap()
}
