//! What cannot be run is refused with a message that names the place, the value and the limit.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod common;

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use common::{Fixture, GQA, MHA, folder};
use moe_model::{
    Checkpoint, Chunk, GenerateOptions, KvCache, LogitsAt, ModelError, Olmoe, OlmoeConfig, OlmoeParams, Sampling,
    generate, resident_experts,
};
use moe_trace::{IgnoreRouting, Phase};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A copy of a fixture to spoil.
fn copy(name: &str) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(folder(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// The message about a folder, without the folder's name.
fn open_error(folder: &TempDir) -> String {
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    error.replace(&format!("{}/", folder.path().display()), "").replace(&folder.path().display().to_string(), ".")
}

/// The message about a configuration with one field set to a value.
fn config_error(field: &str, value: Value) -> String {
    let folder = copy(MHA);
    edit_json(&folder.path().join("config.json"), |config| config[field] = value);
    open_error(&folder)
}

#[test]
fn configurations_that_cannot_be_run() {
    let cases = [
        (
            "architectures",
            json!(["MixtralForCausalLM"]),
            "architectures is MixtralForCausalLM, supported is OlmoeForCausalLM",
        ),
        ("num_experts_per_tok", json!(9), "num_experts_per_tok is 9, must be at most num_experts 8"),
        ("num_experts", json!(0), "num_experts is 0, must be at least 1"),
        ("num_experts", json!(65536), "num_experts is 65536, must be at most 65535"),
        ("num_hidden_layers", json!(70000), "num_hidden_layers is 70000, must be at most 65535 with 8 experts a layer"),
        ("num_experts", json!(null), "num_experts is missing, it is required"),
        ("num_attention_heads", json!(3), "hidden_size is 32, must be a multiple of twice num_attention_heads 3"),
        ("num_attention_heads", json!(0), "num_attention_heads is 0, must be at least 1"),
        ("num_key_value_heads", json!(3), "num_key_value_heads is 3, must divide num_attention_heads 4"),
        ("head_dim", json!(16), "head_dim is 16, must be hidden_size / num_attention_heads 8"),
        ("rms_norm_eps", json!(0.0), "rms_norm_eps is 0, must be positive and finite"),
        ("clip_qkv", json!(-1.0), "clip_qkv is -1, must be positive and finite"),
        ("eos_token_id", json!([2, 96]), "eos_token_id is 96, must be below vocab_size 96"),
        ("hidden_act", json!("gelu"), "hidden_act is gelu, supported is silu"),
        ("attention_bias", json!(true), "attention_bias is true, supported is false"),
        ("sliding_window", json!(128), "sliding_window is 128, supported is full attention"),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "rope_theta": 1e4}),
            "rope_parameters is yarn, supported is the rope_type default",
        ),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling is linear, supported is the rope_type default"),
        ("rope_parameters", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5, supported is 1"),
        (
            "rope_scaling",
            json!({"factor": 2.0}),
            "rope_scaling is {\"factor\": 2.0}, supported are rope_theta and the rope_type default",
        ),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_type": "default"}}),
            "rope_parameters is {\"full_attention\": {\"rope_type\":\"default\"}}, \
             supported are rope_theta and the rope_type default",
        ),
        ("rope_theta", json!(5e5), "rope_theta is 500000, must be that of rope_parameters 10000"),
        ("num_local_experts", json!(9), "num_local_experts is 9, must be num_experts 8"),
        (
            "model_type",
            json!("qwen3_moe"),
            "model_type is qwen3_moe, must be olmoe for the architecture OlmoeForCausalLM",
        ),
        (
            "moe_intermediate_size",
            json!(8),
            "moe_intermediate_size is 8, must be intermediate_size, the width of an expert",
        ),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor is 0.5, supported is 1"),
        ("mlp_bias", json!(true), "mlp_bias is true, supported is false"),
        ("use_qk_norm", json!(false), "use_qk_norm is false, supported is true"),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention", "full_attention"]),
            "layer_types is [\"full_attention\",\"sliding_attention\",\"full_attention\"], supported is full_attention",
        ),
        ("attention_multiplier", json!(0.1), "attention_multiplier is 0.1, supported is null"),
        ("logits_scaling", json!(8), "logits_scaling is 8, supported is 1"),
        ("routed_scaling_factor", json!(2.5), "routed_scaling_factor is 2.5, supported is 1"),
        ("scoring_func", json!("sigmoid"), "scoring_func is \"sigmoid\", supported is softmax"),
        ("first_k_dense_replace", json!(1), "first_k_dense_replace is 1, supported is 0"),
        ("no_rope_layers", json!([1]), "no_rope_layers is [1], supported is an empty list"),
        ("quantization_config", json!({"bits": 4}), "quantization_config is {\"bits\":4}, supported is null"),
    ];
    for (field, value, message) in cases {
        assert_eq!(config_error(field, value), format!("config.json: {message}"));
    }
    let params = OlmoeParams { num_experts: 4, num_experts_per_tok: 8, ..OlmoeParams::default() };
    let error = OlmoeConfig::new(params).unwrap_err();
    assert_eq!(error.to_string(), "num_experts_per_tok is 8, must be at most num_experts 4");
}

#[test]
fn configurations_in_other_words() {
    let folder = copy(MHA);
    let path = folder.path().join("config.json");
    let expected = OlmoeConfig::from_file(&path).unwrap();
    edit_json(&path, |config| {
        let fields = config.as_object_mut().unwrap();
        let experts = fields.remove("num_experts").unwrap();
        fields.insert("num_local_experts".to_owned(), experts);
        fields.insert("num_key_value_heads".to_owned(), Value::Null);
        fields.insert("architectures".to_owned(), Value::Null);
        fields.insert("sliding_window".to_owned(), json!(0));
        fields.insert("use_sliding_window".to_owned(), json!(false));
        fields.insert("rope_scaling".to_owned(), json!({"rope_type": "default"}));
        // Fields of other architectures that ask for what OLMoE does.
        fields.insert("layer_types".to_owned(), json!(["full_attention", "full_attention", "full_attention"]));
        fields.insert("routed_scaling_factor".to_owned(), json!(1));
        fields.insert("mlp_bias".to_owned(), json!(false));
        fields.insert("final_logit_softcapping".to_owned(), Value::Null);
        // Fields that no inference reads.
        fields.insert("router_aux_loss_coef".to_owned(), json!(0.01));
    });
    assert_eq!(OlmoeConfig::from_file(&path).unwrap(), expected);
    edit_json(&path, |config| config["model_type"] = json!("mixtral"));
    assert_eq!(open_error(&folder), "config.json: model_type is mixtral, supported is olmoe");
    fs::write(&path, expected.to_json().to_string()).unwrap();
    assert_eq!(OlmoeConfig::from_file(&path).unwrap(), expected);
    fs::write(&path, r#"{"hidden_size": -32}"#).unwrap();
    assert_eq!(open_error(&folder), "config.json: not the JSON that was expected");
}

#[test]
fn folders_without_all_files() {
    let folder = copy(GQA);
    fs::remove_file(folder.path().join("model-00003-of-00005.safetensors")).unwrap();
    let message = "model.safetensors.index.json: shard model-00003-of-00005.safetensors is missing";
    assert_eq!(open_error(&folder), message);
    fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    let message = ".: neither model.safetensors nor model.safetensors.index.json in this folder";
    assert_eq!(open_error(&folder), message);
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_eq!(open_error(&folder), "config.json: cannot read");
    let error = Checkpoint::open(common::folder(GQA)).unwrap().tokenizer().unwrap_err();
    assert!(error.to_string().ends_with("olmoe-gqa/tokenizer.json: not a readable tokenizer"), "{error}");
}

#[test]
fn indices_that_leave_the_folder() {
    for shard in ["../other.safetensors", "/tmp/other.safetensors", "sub/other.safetensors", "", ".."] {
        let folder = copy(GQA);
        edit_json(&folder.path().join("model.safetensors.index.json"), |index| {
            index["weight_map"]["model.norm.weight"] = json!(shard);
        });
        let message = format!(
            "model.safetensors.index.json: shard {shard:?} is no file name, shards must lie beside their index"
        );
        assert_eq!(open_error(&folder), message);
    }
}

/// What a configuration claims is not allocated before the files are looked at.
#[test]
fn configurations_that_claim_too_much() {
    let folder = copy(MHA);
    let config = folder.path().join("config.json");
    edit_json(&config, |config| {
        config["num_hidden_layers"] = json!(60_000);
        config["num_local_experts"] = json!(60_000);
        config["num_experts"] = json!(60_000);
    });
    assert!(open_error(&folder).contains("num_hidden_layers is 60000, must be at most 279 with 60000 experts a layer"));
    edit_json(&config, |config| {
        config["num_hidden_layers"] = json!(4_000);
        config["num_local_experts"] = json!(4_000);
        config["num_experts"] = json!(4_000);
    });
    assert!(
        open_error(&folder).contains("mlp.gate.weight has shape [8, 32], expected [4000, 32]"),
        "{}",
        open_error(&folder)
    );
    let folder = copy(MHA);
    edit_json(&folder.path().join("config.json"), |config| config["max_position_embeddings"] = json!(u32::MAX));
    let message = "config.json: max_position_embeddings is 4294967295, must be at most 16777216";
    assert_eq!(open_error(&folder), message);
}

#[test]
fn weight_files_that_lack_a_tensor() {
    let folder = copy(GQA);
    let name = "model.layers.1.mlp.experts.4.up_proj.weight";
    let index = folder.path().join("model.safetensors.index.json");
    // Both the index and the architecture speak of a tensor that no shard has.
    edit_json(&folder.path().join("config.json"), |config| config["num_hidden_layers"] = json!(4));
    let missing = "model.layers.3.input_layernorm.weight";
    assert_eq!(open_error(&folder), format!("model.safetensors.index.json: tensor {missing} is missing"));
    edit_json(&index, |index| index["weight_map"][missing] = json!("model-00002-of-00005.safetensors"));
    assert_eq!(open_error(&folder), format!("model-00002-of-00005.safetensors: tensor {missing} is missing"));

    let folder = copy(MHA);
    let file = folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let tensor = tensors.remove(name).unwrap();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    assert_eq!(open_error(&folder), format!("model.safetensors: tensor {name} is missing"));
    tensors.insert(name.to_owned(), tensor.t().unwrap().contiguous().unwrap());
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let message = format!("model.safetensors: tensor {name} has shape [32, 16], expected [16, 32]");
    assert_eq!(open_error(&folder), message);
    tensors.insert(name.to_owned(), tensor.to_dtype(DType::F64).unwrap());
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let message = format!("model.safetensors: tensor {name} has type F64, supported are F32, F16 and BF16");
    assert_eq!(open_error(&folder), message);
}

#[test]
fn weight_files_with_tensors_that_the_configuration_leaves_out() {
    let folder = copy(GQA);
    edit_json(&folder.path().join("config.json"), |config| config["num_hidden_layers"] = json!(2));
    let error = open_error(&folder);
    let (file, message) = error.split_once(": ").unwrap();
    assert!(file.starts_with("model-0000"), "{error}");
    let expected = "is not of the model that config.json describes, whose num_hidden_layers is 2";
    assert!(message.starts_with("tensor model.layers.2.") && message.ends_with(expected), "{error}");

    let folder = copy(MHA);
    let file = folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let mut error_with = |name: &str, like: &str| {
        let tensor = tensors[like].clone();
        tensors.insert(name.to_owned(), tensor);
        candle_core::safetensors::save(&tensors, &file).unwrap();
        tensors.remove(name);
        Checkpoint::open(folder.path()).map(|_| String::new()).unwrap_or_else(|_| open_error(&folder))
    };
    let extra = |name: &str, reason: &str| {
        format!("model.safetensors: tensor {name} is not of the model that config.json describes, {reason}")
    };
    let bias = "model.layers.0.self_attn.q_proj.bias";
    assert_eq!(error_with(bias, "model.norm.weight"), extra(bias, "which has none of this name"));
    let expert = "model.layers.0.mlp.experts.8.up_proj.weight";
    let like = "model.layers.0.mlp.experts.0.up_proj.weight";
    assert_eq!(error_with(expert, like), extra(expert, "whose num_experts is 8"));
    // A table that old checkpoints hold.
    assert_eq!(error_with("model.layers.0.self_attn.rotary_emb.inv_freq", "model.norm.weight"), "");
}

#[test]
fn an_output_projection_beside_a_tied_embedding_must_be_its_copy() {
    let folder = copy(MHA);
    let file = folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    edit_json(&folder.path().join("config.json"), |config| config["tie_word_embeddings"] = json!(true));
    let reason = "whose tie_word_embeddings is true, and it differs from model.embed_tokens.weight";
    let expected = format!("tensor lm_head.weight is not of the model that config.json describes, {reason}");
    assert_eq!(open_error(&folder), format!("model.safetensors: {expected}"));
    tensors.insert("lm_head.weight".to_owned(), tensors["model.embed_tokens.weight"].clone());
    candle_core::safetensors::save(&tensors, &file).unwrap();
    Checkpoint::open(folder.path()).unwrap();
}

#[test]
fn weight_files_that_are_cut_off() {
    let folder = copy(MHA);
    let file = folder.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    for len in [0, 7, 100, bytes.len() - 1] {
        fs::write(&file, &bytes[..len]).unwrap();
        assert_eq!(open_error(&folder), "model.safetensors: not a readable safetensors file", "{len} bytes");
    }
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(error.source().unwrap().downcast_ref::<safetensors::SafeTensorError>().is_some());
}

#[test]
fn tokenizers_that_do_not_fit_the_model() {
    let folder = copy(MHA);
    edit_json(&folder.path().join("tokenizer.json"), |tokenizer| tokenizer["model"]["vocab"]["w96"] = json!(96));
    let error = Checkpoint::open(folder.path()).unwrap().tokenizer().unwrap_err().to_string();
    let message = "tokenizer.json: the tokenizer has token id 96, the model's vocabulary has 96";
    assert!(error.ends_with(message), "{error}");
}

/// Error of a prefill of one chunk.
fn chunk_error(fixture: &Fixture, tokens: &[u32], cache: &mut KvCache) -> String {
    let chunk = Chunk { sequence: 4, tokens, cache, phase: Phase::Prefill };
    fixture.model.forward(&mut [chunk], LogitsAt::Last, &mut IgnoreRouting).unwrap_err().to_string()
}

#[test]
fn chunks_that_cannot_be_run() {
    let fixture = Fixture::load(MHA);
    let mut cache = KvCache::new(fixture.model.config());
    let message = "sequence 4: token id 96 at 1 is out of range, the vocabulary has 96";
    assert_eq!(chunk_error(&fixture, &[3, 96], &mut cache), message);
    assert_eq!(chunk_error(&fixture, &[], &mut cache), "sequence 4: there are no tokens");
    let message = "sequence 4: 65 tokens are more than max_position_embeddings 64";
    assert_eq!(chunk_error(&fixture, &[3; 65], &mut cache), message);
    let deeper = OlmoeParams { num_hidden_layers: 5, ..fixture.model.config().params().clone() };
    let mut other = KvCache::new(&OlmoeConfig::new(deeper).unwrap());
    let message = "sequence 4: key-value cache has 5 layers, the model has 3";
    assert_eq!(chunk_error(&fixture, &[3], &mut other), message);

    let mut caches = [KvCache::new(fixture.model.config()), KvCache::new(fixture.model.config())];
    let phases = [Phase::Prefill, Phase::Decode];
    let chunks = caches.iter_mut().zip(phases).enumerate();
    let mut chunks: Vec<_> =
        chunks.map(|(sequence, (cache, phase))| Chunk { sequence, tokens: &[3], cache, phase }).collect();
    let error = fixture.model.forward(&mut chunks, LogitsAt::Last, &mut IgnoreRouting).unwrap_err();
    assert_eq!(error.to_string(), "sequence 1 is in phase decode, the batch is in phase prefill");
    assert!(fixture.model.forward(&mut [], LogitsAt::Last, &mut IgnoreRouting).unwrap().is_empty());
}

#[test]
fn dense_batches_that_cannot_be_run() {
    let fixture = Fixture::load(MHA);
    let error = |tokens: &Tensor| fixture.model.forward_dense(tokens).unwrap_err().to_string();
    let long = Tensor::zeros((2, 65), DType::U32, &Device::Cpu).unwrap();
    assert_eq!(error(&long), "sequence 0: 65 tokens are more than max_position_embeddings 64");
    let message = "sequence 1: token id 96 at 0 is out of range, the vocabulary has 96";
    assert_eq!(error(&Tensor::new(&[[3u32], [96]], &Device::Cpu).unwrap()), message);
    let empty = Tensor::zeros((1, 0), DType::U32, &Device::Cpu).unwrap();
    assert_eq!(error(&empty), "sequence 0: there are no tokens");
}

#[test]
fn prompts_and_options_that_cannot_be_run() {
    let fixture = Fixture::load(MHA);
    let error = |prompts: &[Vec<u32>], max_new_tokens| {
        let options = GenerateOptions { max_new_tokens, sampler: Sampling::Greedy, seeds: vec![], stop_tokens: vec![] };
        generate(&fixture.model, prompts, &options, &mut IgnoreRouting, |_, _| {}).unwrap_err().to_string()
    };
    assert_eq!(error(&[vec![3], vec![]], 1), "sequence 1: there are no tokens");
    assert_eq!(error(&[vec![3]], 0), "max_new_tokens is 0, must be at least 1");
}

/// The fixture's model with one tensor replaced by NaN.
fn with_nan(name: &str) -> Olmoe {
    let mut tensors = candle_core::safetensors::load(folder(MHA).join("model.safetensors"), &Device::Cpu).unwrap();
    let tensor = tensors.get_mut(name).unwrap();
    *tensor = (tensor.zeros_like().unwrap() + f64::NAN).unwrap();
    let config = OlmoeConfig::from_file(folder(MHA).join("config.json")).unwrap();
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let experts = resident_experts(&config, &vb).unwrap();
    Olmoe::new(&config, &vb, Arc::new(experts)).unwrap()
}

#[test]
fn logits_that_are_not_finite() {
    let options = GenerateOptions { max_new_tokens: 2, sampler: Sampling::Greedy, seeds: vec![], stop_tokens: vec![] };
    let error = |model: &Olmoe| {
        generate(model, &[vec![3, 4]], &options, &mut IgnoreRouting, |_, _| {}).unwrap_err().to_string()
    };
    let model = with_nan("model.layers.1.mlp.gate.weight");
    let message = "layer 1, token 0: router logit of expert 0 is NaN, not a finite number";
    assert_eq!(error(&model), message);
    let tokens = Tensor::new(&[[3u32, 4]], &Device::Cpu).unwrap();
    assert_eq!(model.forward_dense(&tokens).unwrap_err().to_string(), message);
    let message = "sequence 0, new token 0: logit of token id 0 is NaN, not a finite number";
    assert_eq!(error(&with_nan("lm_head.weight")), message);

    // A failed pass leaves the cache as it was.
    let mut cache = KvCache::new(model.config());
    let chunk = Chunk { sequence: 0, tokens: &[3, 4], cache: &mut cache, phase: Phase::Prefill };
    model.forward(&mut [chunk], LogitsAt::Last, &mut IgnoreRouting).unwrap_err();
    assert!(cache.is_empty());
}

#[test]
fn types_that_cannot_be_computed_in() {
    let checkpoint = Checkpoint::open(folder(MHA)).unwrap();
    let error = checkpoint.load_resident(DType::U8, &Device::Cpu).unwrap_err();
    assert_eq!(error.to_string(), "dtype is u8, supported are f32, f16 and bf16");
    assert!(matches!(error, ModelError::Dtype { dtype: DType::U8 }));
}
