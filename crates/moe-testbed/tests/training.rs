//! A small model, from text to a folder that `moe-model` opens.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use candle_core::{DType, Device};
use moe_model::{Checkpoint, OlmoeConfig, OlmoeParams};
use moe_testbed::{
    Balancing, Corpus, Domain, END_OF_TEXT, TestbedError, TokenizedCorpus, TrainOptions, Trainer, held_out_bits,
    read_tokenizer, train_tokenizer,
};

const VOCABULARY: usize = 300;

fn corpus() -> Corpus {
    let sums = |n: usize| format!("{n} plus {n} is {}, and {n} less {n} is 0.\n", 2 * n).repeat(4);
    let code = |n: usize| format!("def f{n}(x):\n    y = x + {n}\n    return y\n\n").repeat(4);
    let domain = |name: &str, text: &dyn Fn(usize) -> String| Domain {
        name: name.to_owned(),
        training: (0..60).map(text).collect(),
        held_out: (60..64).map(text).collect(),
    };
    Corpus { domains: vec![domain("code", &code), domain("sums", &sums)] }
}

fn tokens() -> TokenizedCorpus {
    let corpus = corpus();
    TokenizedCorpus::encode(&corpus, &train_tokenizer(&corpus, VOCABULARY).unwrap()).unwrap()
}

fn config() -> OlmoeConfig {
    OlmoeConfig::new(OlmoeParams {
        vocab_size: VOCABULARY,
        hidden_size: 32,
        intermediate_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        num_experts: 8,
        num_experts_per_tok: 2,
        norm_topk_prob: true,
        max_position_embeddings: 48,
        tie_word_embeddings: true,
        initializer_range: 0.05,
        eos_token_ids: vec![0],
        ..OlmoeParams::default()
    })
    .unwrap()
}

fn options() -> TrainOptions {
    TrainOptions { steps: 60, warm_up: 5, batch: 4, micro_batch: 2, length: 32, ..TrainOptions::default() }
}

fn trainer() -> Trainer {
    Trainer::new(&config(), &tokens(), options(), &Device::Cpu).unwrap()
}

/// All that a checkpoint holds after `steps` steps.
fn bytes_after(mut trainer: Trainer, steps: u64, folder: &Path) -> Vec<u8> {
    trainer.run(steps, |_| ()).unwrap();
    assert_eq!(trainer.step(), steps);
    let path = folder.join("bytes");
    trainer.save(&path).unwrap();
    sorted(&path)
}

/// A checkpoint's tensors by name; the header is a hash map whose order is free.
fn sorted(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = tensors.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors.iter().flat_map(|(name, tensor)| [name.as_bytes(), tensor.data()].concat()).collect()
}

#[test]
fn loss_and_held_out_bits_fall_and_the_load_stays_spread() {
    let (tokens, mut trainer) = (tokens(), trainer());
    let before = held_out_bits(trainer.model(), &tokens, 48, 2).unwrap();
    let mut seen = Vec::new();
    trainer.run(60, |progress| seen.push(*progress)).unwrap();
    let (first, last) = (seen[0], seen[59]);
    assert_eq!((first.step, last.step, first.tokens), (1, 60, 4 * 32));
    assert!((first.loss - (VOCABULARY as f64).ln()).abs() < 0.3, "{first:?}");
    assert!(last.loss < 0.6 * first.loss, "{first:?} {last:?}");
    assert!(seen.iter().all(|progress| (0.99..4.0).contains(&progress.balance)));
    for (before, after) in before.iter().zip(held_out_bits(trainer.model(), &tokens, 48, 2).unwrap()) {
        assert!(after.bits_per_byte() < 0.7 * before.bits_per_byte(), "{before:?} {after:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let reference = bytes_after(trainer(), 3, folder.path());
    assert!(reference == bytes_after(trainer(), 3, folder.path()));
    assert!(reference == bytes_after(trainer().with_workers(3).unwrap(), 3, folder.path()));
    let other = Trainer::new(&config(), &tokens(), TrainOptions { seed: 1, ..options() }, &Device::Cpu).unwrap();
    assert!(reference != bytes_after(other, 3, folder.path()));
}

#[test]
fn a_resumed_run_is_bit_identical_to_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("training.safetensors");
    let uninterrupted = bytes_after(trainer(), 7, folder.path());
    let mut first = trainer();
    first.run(4, |_| ()).unwrap();
    first.save(&path).unwrap();
    let resumed = Trainer::resume(&config(), &tokens(), options(), &Device::Cpu, &path).unwrap();
    assert_eq!(resumed.step(), 4);
    assert!(uninterrupted == bytes_after(resumed, 7, folder.path()));
}

#[test]
fn held_out_bits_do_not_depend_on_threads_and_more_context_helps() {
    let (tokens, mut trainer) = (tokens(), trainer());
    trainer.run(60, |_| ()).unwrap();
    let bits = |length, workers| held_out_bits(trainer.model(), &tokens, length, workers).unwrap();
    assert_eq!(bits(32, 1), bits(32, 3));
    assert!(bits(32, 1)[0].bits < bits(2, 1)[0].bits);
}

#[test]
fn an_exported_folder_opens_and_predicts_the_same_up_to_bf16() {
    let corpus = corpus();
    let tokenizer = train_tokenizer(&corpus, VOCABULARY).unwrap();
    let tokens = TokenizedCorpus::encode(&corpus, &tokenizer).unwrap();
    let mut trainer = Trainer::new(&config(), &tokens, options(), &Device::Cpu).unwrap();
    trainer.run(30, |_| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    trainer.export(&out, &tokenizer).unwrap();

    let mut files: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json"]);
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert_eq!(checkpoint.config(), &config());
    assert_eq!(read_tokenizer(&out.join("tokenizer.json")).unwrap().token_to_id(END_OF_TEXT), Some(0));
    let model = checkpoint.load_resident(DType::F32, &Device::Cpu).unwrap();
    let loaded = held_out_bits(&model, &tokens, 48, 1).unwrap();
    for (trained, loaded) in held_out_bits(trainer.model(), &tokens, 48, 1).unwrap().iter().zip(loaded) {
        assert!((trained.bits_per_byte() / loaded.bits_per_byte() - 1.0).abs() < 0.01, "{trained:?} {loaded:?}");
    }
}

#[test]
fn options_that_do_not_fit_are_errors() {
    let message = |options| Trainer::new(&config(), &tokens(), options, &Device::Cpu).unwrap_err().to_string();
    assert_eq!(message(TrainOptions { steps: 0, ..options() }), "steps is 0, allowed are 1 and more");
    let divisors = "allowed are divisors of the batch 4";
    assert_eq!(message(TrainOptions { micro_batch: 3, ..options() }), format!("micro batch is 3, {divisors}"));
    assert_eq!(message(TrainOptions { micro_batch: 0, ..options() }), format!("micro batch is 0, {divisors}"));
    let positions = "length is 49, allowed are 1..=48, the model's positions";
    assert_eq!(message(TrainOptions { length: 49, ..options() }), positions);
    assert!(message(TrainOptions { peak_rate: f64::NAN, ..options() }).starts_with("learning rate is NaN"));
    let small = OlmoeConfig::new(OlmoeParams { vocab_size: 290, ..config().params().clone() }).unwrap();
    let error = Trainer::new(&small, &tokens(), options(), &Device::Cpu).unwrap_err().to_string();
    assert_eq!(error, "vocabulary is 290, allowed are more than 299, a token id of the corpus");
    let error = held_out_bits(trainer().model(), &tokens(), 49, 1).unwrap_err().to_string();
    assert_eq!(error, "length is 49, allowed are 2..=48, the model's positions");
}

#[test]
fn a_rate_that_is_far_too_high_is_reported() {
    let options = TrainOptions { peak_rate: 1e30, warm_up: 0, ..options() };
    let mut trainer = Trainer::new(&config(), &tokens(), options, &Device::Cpu).unwrap();
    let error = trainer.run(60, |_| ()).unwrap_err();
    assert!(matches!(error, TestbedError::Diverged { .. } | TestbedError::Model(_)), "{error:?}");
}

#[test]
fn checkpoints_that_do_not_fit_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("training.safetensors");
    let resume = |config: &OlmoeConfig, options, path: &Path| {
        Trainer::resume(config, &tokens(), options, &Device::Cpu, path).unwrap_err().to_string()
    };
    let at = |path: &Path, rest: &str| format!("{}{rest}", path.display());
    assert_eq!(resume(&config(), options(), &path), at(&path, ": cannot read or write"));

    trainer().save(&path).unwrap();
    let misfit = |name: &str, found: usize, expected: usize| {
        at(&path, &format!(": the checkpoint is of a run whose {name} is {found}, of this run it is {expected}"))
    };
    let shorter = TrainOptions { length: 16, ..options() };
    assert_eq!(resume(&config(), shorter, &path), misfit("options.length", options().length, 16));
    let narrow = OlmoeParams { intermediate_size: 8, ..config().params().clone() };
    let entry = misfit("config.intermediate_size", config().params().intermediate_size, 8);
    assert_eq!(resume(&OlmoeConfig::new(narrow).unwrap(), options(), &path), entry);
    let balancing = Balancing { coefficient: 0.5, ..Balancing::default() };
    let other = resume(&config(), TrainOptions { balancing, ..options() }, &path);
    assert!(other.contains("options.balancing.") && other.ends_with("of this run it is 0.5"), "{other}");
    // A change that no tensor shows.
    let other_k = config().params().num_experts_per_tok + 1;
    let wider = OlmoeParams { num_experts_per_tok: other_k, ..config().params().clone() };
    let entry = misfit("config.num_experts_per_tok", other_k - 1, other_k);
    assert_eq!(resume(&OlmoeConfig::new(wider).unwrap(), options(), &path), entry);
    let mut corpus = corpus();
    corpus.domains[0].training.pop();
    let other = TokenizedCorpus::encode(&corpus, &train_tokenizer(&corpus, VOCABULARY).unwrap()).unwrap();
    let error = Trainer::resume(&config(), &other, options(), &Device::Cpu, &path).unwrap_err().to_string();
    assert!(error.contains(": the checkpoint is of a run whose training tokens of each domain is ["), "{error}");

    let bytes = fs::read(&path).unwrap();
    for length in [0, 4, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(resume(&config(), options(), &path), at(&path, ": not a readable checkpoint"), "{length} bytes");
    }
}

/// Every changed bit is found: in the weights, the moments, the description of the run, and the digest itself.
#[test]
fn damaged_checkpoints_are_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("training.safetensors");
    trainer().save(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let resume =
        || Trainer::resume(&config(), &tokens(), options(), &Device::Cpu, &path).map_err(|error| error.to_string());
    resume().unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let digest = bytes.windows(5).position(|window| window == b"crc32").unwrap();
    let seed = bytes.windows(7).position(|window| window == br#"\"seed\"#).unwrap() + 9;
    for at in [header, header + 1001, (header + bytes.len()) / 2, bytes.len() - 1, digest + 1, digest + 11, seed] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        let error = resume().unwrap_err();
        assert!(error.contains("the checkpoint is damaged, it has "), "byte {at}: {error}");
    }
}

#[test]
fn broken_weights_are_told_and_not_scored() {
    let folder = tempfile::tempdir().unwrap();
    trainer().export(folder.path(), &train_tokenizer(&corpus(), VOCABULARY).unwrap()).unwrap();
    let file = folder.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    // The last norm is behind every router, so nothing before the logits can notice.
    let norm = tensors.get_mut("model.norm.weight").unwrap();
    *norm = norm.affine(f64::NAN, 0.0).unwrap();
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let model = Checkpoint::open(folder.path()).unwrap().load_resident(DType::F32, &Device::Cpu).unwrap();
    let message = held_out_bits(&model, &tokens(), 16, 1).unwrap_err().to_string();
    assert_eq!(message, "domain code: the model needs NaN bits for the held-out text, its weights are broken");
}

#[test]
fn documents_are_encoded_whole_whatever_the_tokenizer_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let tokenizer = train_tokenizer(&corpus(), VOCABULARY).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&tokenizer.to_string(false).unwrap()).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    fs::write(&path, json.to_string()).unwrap();
    let read = TokenizedCorpus::encode(&corpus(), &read_tokenizer(&path).unwrap()).unwrap();
    assert_eq!(read, tokens());
}

#[test]
fn losses_and_learning_curves_that_cannot_be() {
    let message = |options| Trainer::new(&config(), &tokens(), options, &Device::Cpu).unwrap_err().to_string();
    let balancing = Balancing { coefficient: f64::NAN, ..Balancing::default() };
    let nan = TrainOptions { balancing, ..options() };
    assert_eq!(message(nan), "balance is NaN, allowed are 0 and more");
    assert_eq!(message(TrainOptions { floor: 1.5, ..options() }), "floor is 1.5, allowed are 0 to 1");
}
