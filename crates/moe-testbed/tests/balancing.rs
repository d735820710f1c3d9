//! Every router under every way to balance, trained for a few steps.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use candle_core::{DType, Device};
use moe_model::{Checkpoint, OlmoeConfig, OlmoeParams, RouterKind};
use moe_testbed::{
    AdamWOptions, BalanceScope, Balancing, Corpus, Domain, Progress, TokenizedCorpus, TrainOptions, Trainer,
    held_out_bits, train_tokenizer,
};

const VOCABULARY: usize = 280;

fn corpus() -> Corpus {
    let domain = |name: &str, text: &dyn Fn(usize) -> String| Domain {
        name: name.to_owned(),
        training: (0..40).map(text).collect(),
        held_out: (40..42).map(text).collect(),
    };
    let sums = |n: usize| format!("{n} plus {n} is {}, and {n} less {n} is 0.\n", 2 * n).repeat(4);
    let code = |n: usize| format!("def f{n}(x):\n    y = x + {n}\n    return y\n\n").repeat(4);
    let list = |n: usize| format!("- item {n}; - item {}; - item {};\n", n + 1, n + 2).repeat(4);
    Corpus { domains: vec![domain("code", &code), domain("list", &list), domain("sums", &sums)] }
}

fn tokens() -> TokenizedCorpus {
    let corpus = corpus();
    TokenizedCorpus::encode(&corpus, &train_tokenizer(&corpus, VOCABULARY).unwrap()).unwrap()
}

/// Three layers, of which one is dense, and a shared expert.
fn config(router: RouterKind) -> OlmoeConfig {
    OlmoeConfig::new(OlmoeParams {
        vocab_size: VOCABULARY,
        hidden_size: 16,
        intermediate_size: 8,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        num_experts: 6,
        num_experts_per_tok: 2,
        norm_topk_prob: true,
        max_position_embeddings: 48,
        tie_word_embeddings: true,
        initializer_range: 0.05,
        eos_token_ids: vec![0],
        router,
        router_seed: if router.has_logits() { 0 } else { 3 },
        num_domains: if router == RouterKind::Reference { 3 } else { 0 },
        n_shared_experts: 1,
        mlp_only_layers: vec![0],
        dense_intermediate_size: 24,
        ..OlmoeParams::default()
    })
    .unwrap()
}

fn options(balancing: Balancing) -> TrainOptions {
    TrainOptions { steps: 100, warm_up: 2, batch: 6, micro_batch: 2, length: 24, balancing, ..TrainOptions::default() }
}

/// What works for a router at a scope.
fn balancing(router: RouterKind, scope: BalanceScope) -> Balancing {
    let bias_rate = if router == RouterKind::Sigmoid { 1e-3 } else { 0.0 };
    let capacity_factor = Some(1.0).filter(|_| router != RouterKind::ExpertChoice);
    Balancing { scope, coefficient: 0.1, z_loss: 1e-3, bias_rate, capacity_factor }
}

fn run(trainer: &mut Trainer, steps: u64) -> Vec<Progress> {
    let mut seen = Vec::new();
    trainer.run(steps, |progress| seen.push(*progress)).unwrap();
    seen
}

/// All that a checkpoint holds, tensors by name.
fn bytes(trainer: &Trainer, folder: &Path) -> Vec<u8> {
    let path = folder.join("bytes");
    trainer.save(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = tensors.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors.iter().flat_map(|(name, tensor)| [name.as_bytes(), tensor.data()].concat()).collect()
}

#[test]
fn every_router_trains_at_every_scope_with_and_without_dropping() {
    let (tokens, folder) = (tokens(), tempfile::tempdir().unwrap());
    for router in RouterKind::ALL {
        for scope in BalanceScope::ALL {
            let balancing = balancing(router, scope);
            let free = Balancing { capacity_factor: None, ..balancing };
            let trainer = |balancing| Trainer::new(&config(router), &tokens, options(balancing), &Device::Cpu).unwrap();
            for balancing in [balancing, free] {
                let mut trainer = trainer(balancing);
                let seen = run(&mut trainer, 4);
                for progress in &seen {
                    let Progress { loss, balance, z_loss, purity, max_violation, dropped, .. } = *progress;
                    assert!([loss, balance].iter().all(|loss| loss.is_finite() && *loss > 0.0), "{progress:?}");
                    assert!(z_loss.is_finite() && (z_loss > 0.0) == router.has_logits(), "{router}, {progress:?}");
                    assert!((1.0 / 3.0..=1.0).contains(&purity) && max_violation >= 0.0, "{progress:?}");
                    assert_eq!(dropped > 0.0, balancing.capacity_factor.is_some(), "{router}, {scope}, {progress:?}");
                    assert!(router != RouterKind::Reference || purity == 1.0, "{progress:?}");
                }
                assert!(seen[3].loss < seen[0].loss, "{router}, {scope}: {seen:?}");
            }
            // Whatever the number of workers.
            let [mut one, mut three] = [trainer(balancing), trainer(balancing).with_workers(3).unwrap()];
            assert_eq!(run(&mut one, 2), run(&mut three, 2));
            assert!(bytes(&one, folder.path()) == bytes(&three, folder.path()), "{router}, {scope}");
        }
    }
}

#[test]
fn a_resumed_run_is_bit_identical_for_every_router() {
    let (tokens, folder) = (tokens(), tempfile::tempdir().unwrap());
    let path = folder.path().join("training.safetensors");
    for router in RouterKind::ALL {
        let (config, options) = (config(router), options(balancing(router, BalanceScope::Global)));
        let mut trainer = Trainer::new(&config, &tokens, options.clone(), &Device::Cpu).unwrap();
        run(&mut trainer, 3);
        trainer.save(&path).unwrap();
        let mut resumed = Trainer::resume(&config, &tokens, options, &Device::Cpu, &path).unwrap();
        assert!(bytes(&resumed, folder.path()) == bytes(&trainer, folder.path()));
        assert_eq!(run(&mut resumed, 6), run(&mut trainer, 6));
        assert!(bytes(&resumed, folder.path()) == bytes(&trainer, folder.path()), "{router}");
    }
}

/// The mean of the last steps.
fn late(seen: &[Progress], figure: impl Fn(&Progress) -> f64) -> f64 {
    seen[seen.len() - 10..].iter().map(figure).sum::<f64>() / 10.0
}

#[test]
fn biases_and_losses_move_the_load_towards_even() {
    let tokens = tokens();
    let violation = |router, balancing| {
        let options = TrainOptions { peak_rate: 3e-3, ..options(balancing) };
        let mut trainer = Trainer::new(&config(router), &tokens, options, &Device::Cpu).unwrap();
        late(&run(&mut trainer, 60), |progress| progress.max_violation)
    };
    let none = Balancing { scope: BalanceScope::None, ..Balancing::default() };
    let free = violation(RouterKind::Sigmoid, none);
    let biased = violation(RouterKind::Sigmoid, Balancing { bias_rate: 0.01, ..none });
    assert!(biased < 0.5 * free, "loss-free: {biased}, without: {free}");

    let free = violation(RouterKind::Softmax, none);
    for scope in [BalanceScope::Sequence, BalanceScope::MicroBatch, BalanceScope::Global] {
        let balanced = violation(RouterKind::Softmax, Balancing { scope, coefficient: 0.3, ..none });
        assert!(balanced < 0.5 * free, "{scope}: {balanced}, without: {free}");
    }
}

/// The z-loss is what the coefficient says it is: a large one makes it smaller.
#[test]
fn the_z_loss_shrinks_the_logits() {
    let tokens = tokens();
    let z_loss = |coefficient| {
        let balancing = Balancing { z_loss: coefficient, ..Balancing::default() };
        let mut trainer =
            Trainer::new(&config(RouterKind::Softmax), &tokens, options(balancing), &Device::Cpu).unwrap();
        late(&run(&mut trainer, 40), |progress| progress.z_loss)
    };
    let (without, with) = (z_loss(0.0), z_loss(1.0));
    assert!(with < 0.9 * without, "{with} {without}");
}

/// Global scope over micro-batches is micro-batch scope over the whole batch, up to rounding.
#[test]
fn global_scope_is_that_of_one_large_micro_batch() {
    let tokens = tokens();
    let run = |scope, micro_batch, epsilon| {
        let balancing = Balancing { scope, coefficient: 1.0, ..Balancing::default() };
        // A large epsilon makes a step proportional to the gradient, so that rounding stays small.
        let adamw = AdamWOptions { epsilon, ..AdamWOptions::default() };
        let options = TrainOptions { micro_batch, adamw, ..options(balancing) };
        run(&mut Trainer::new(&config(RouterKind::Softmax), &tokens, options, &Device::Cpu).unwrap(), 4)
    };
    let close = |a: &[Progress], b: &[Progress]| {
        let pairs = a.iter().zip(b).flat_map(|(a, b)| {
            [(a.loss, b.loss), (a.balance, b.balance), (a.gradient_norm, b.gradient_norm), (a.z_loss, b.z_loss)]
        });
        pairs.map(|(a, b): (f64, f64)| (a / b - 1.0).abs()).fold(0.0, f64::max)
    };
    let whole = run(BalanceScope::MicroBatch, 6, 1.0);
    let global = close(&run(BalanceScope::Global, 2, 1.0), &whole);
    assert!(global < 1e-5, "{global}");
    // The other scopes differ by more.
    for scope in [BalanceScope::MicroBatch, BalanceScope::Sequence] {
        let other = close(&run(scope, 2, 1.0), &whole);
        assert!(other > 1e-3, "{scope}: {other}");
    }
}

#[test]
fn what_no_gradient_changes_stays_and_is_exported() {
    let corpus = corpus();
    let tokenizer = train_tokenizer(&corpus, VOCABULARY).unwrap();
    let tokens = TokenizedCorpus::encode(&corpus, &tokenizer).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for router in RouterKind::ALL {
        let mut trainer =
            Trainer::new(&config(router), &tokens, options(balancing(router, BalanceScope::MicroBatch)), &Device::Cpu)
                .unwrap();
        let path = folder.path().join("checkpoint");
        let saved = |trainer: &Trainer| {
            trainer.save(&path).unwrap();
            candle_core::safetensors::load(&path, &Device::Cpu).unwrap()
        };
        let before = saved(&trainer);
        run(&mut trainer, 3);
        let after = saved(&trainer);
        let buffers = |prefix: &str| after.keys().filter(|name| name.starts_with(prefix)).count();
        assert_eq!(buffers("buffer."), if matches!(router, RouterKind::Random | RouterKind::Sigmoid) { 2 } else { 0 });
        let changed = |name: &str| {
            let [before, after] =
                [&before[name], &after[name]].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            before != after
        };
        let gate = "model.layers.1.mlp.gate";
        match router {
            RouterKind::Random => assert!(!changed(&format!("buffer.{gate}.weight"))),
            RouterKind::Hash | RouterKind::Position => assert!(after.keys().all(|name| !name.contains("mlp.gate."))),
            _ => assert!(changed(&format!("value.{gate}.weight"))),
        }

        let out = folder.path().join(router.name());
        trainer.export(&out, &tokenizer).unwrap();
        let checkpoint = Checkpoint::open(&out).unwrap();
        assert_eq!(checkpoint.config(), &config(router));
        if router == RouterKind::Sigmoid {
            let name = format!("{gate}.e_score_correction_bias");
            assert!(changed(&format!("buffer.{name}")));
            let exported = candle_core::safetensors::load(out.join("model.safetensors"), &Device::Cpu).unwrap();
            let [exported, ours] =
                [&exported[&name], &after[&format!("buffer.{name}")]].map(|t| t.to_vec1::<f32>().unwrap());
            assert_eq!(exported, ours);
        }
        let model = checkpoint.load_resident(DType::F32, &Device::Cpu).unwrap();
        let trained = held_out_bits(trainer.model(), &tokens, 48, 1).unwrap();
        for (trained, loaded) in trained.iter().zip(held_out_bits(&model, &tokens, 48, 1).unwrap()) {
            let difference = trained.bits_per_byte() / loaded.bits_per_byte() - 1.0;
            assert!(difference.abs() < 0.02, "{router}: {difference}");
        }
    }
}

#[test]
fn what_does_not_fit_the_router_is_an_error() {
    let message = |config: OlmoeConfig, balancing| {
        Trainer::new(&config, &tokens(), options(balancing), &Device::Cpu).unwrap_err().to_string()
    };
    let biased = Balancing { bias_rate: 0.1, ..Balancing::default() };
    let error = message(config(RouterKind::Random), biased);
    assert_eq!(error, "bias rate is 0.1, allowed are 0, the router random has no biases");
    let two = OlmoeParams { num_domains: 2, ..config(RouterKind::Reference).params().clone() };
    let error = message(OlmoeConfig::new(two).unwrap(), Balancing::default());
    assert_eq!(error, "number of domains is 3, allowed are at most 2, those of the reference router");
}
