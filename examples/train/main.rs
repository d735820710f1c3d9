//! Trains a small OLMoE on a folder of text, one sub-folder a domain.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use moe_model::{OlmoeConfig, OlmoeParams};
use moe_testbed::{Corpus, TokenizedCorpus, TrainOptions, Trainer, held_out_bits, train_tokenizer};

/// Trains a small Mixture-of-Experts language model and writes it as a Hugging Face folder.
///
/// The run is decided by its options and the text: the same command makes the same bytes. Interrupted runs go on with
/// --resume from the last checkpoint, OUT/training.safetensors.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Folder with one sub-folder of UTF-8 text files a domain
    data: PathBuf,
    /// Folder for the model
    #[arg(long)]
    out: PathBuf,
    /// Optimizer steps
    #[arg(long, default_value_t = 1000)]
    steps: u64,
    /// Sequences a step
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Sequences that go through the model at once
    #[arg(long, default_value_t = 8)]
    micro_batch: usize,
    /// Tokens a sequence; also the longest sequence that the model can read
    #[arg(long, default_value_t = 256)]
    length: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 3e-3)]
    lr: f64,
    /// Steps of warm-up
    #[arg(long, default_value_t = 100)]
    warm_up: u64,
    /// Weight of the load-balance loss
    #[arg(long, default_value_t = 0.01)]
    balance: f64,
    /// Seed of the split, the weights and the order of the text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Share of each domain's text that is held out
    #[arg(long, default_value_t = 0.05)]
    held_out: f64,
    /// Tokens of the byte-level BPE
    #[arg(long, default_value_t = 3072)]
    vocabulary: usize,
    /// Decoder layers
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Width of the residual stream
    #[arg(long, default_value_t = 128)]
    hidden: usize,
    /// Attention heads
    #[arg(long, default_value_t = 4)]
    heads: usize,
    /// Experts a layer
    #[arg(long, default_value_t = 32)]
    experts: usize,
    /// Experts a token uses in a layer
    #[arg(long, default_value_t = 4)]
    top_k: usize,
    /// Width inside an expert
    #[arg(long, default_value_t = 64)]
    expert_width: usize,
    /// Threads; with RAYON_NUM_THREADS=1 each computes a micro-batch of its own
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 100)]
    checkpoint_every: u64,
    /// Go on from the last checkpoint
    #[arg(long)]
    resume: bool,
}

impl Options {
    fn config(&self) -> Result<OlmoeConfig> {
        Ok(OlmoeConfig::new(OlmoeParams {
            vocab_size: self.vocabulary,
            hidden_size: self.hidden,
            intermediate_size: self.expert_width,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.heads,
            num_experts: self.experts,
            num_experts_per_tok: self.top_k,
            norm_topk_prob: true,
            max_position_embeddings: self.length,
            tie_word_embeddings: true,
            initializer_range: 0.05,
            eos_token_ids: vec![0],
            ..OlmoeParams::default()
        })?)
    }

    fn training(&self) -> TrainOptions {
        TrainOptions {
            steps: self.steps,
            batch: self.batch,
            micro_batch: self.micro_batch,
            length: self.length,
            peak_rate: self.lr,
            warm_up: self.warm_up,
            balance: self.balance,
            seed: self.seed,
            ..TrainOptions::default()
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let checkpoint = options.out.join("training.safetensors");
    ensure!(options.resume || !checkpoint.exists(), "{} exists: --resume it or remove it", checkpoint.display());
    fs::create_dir_all(&options.out).with_context(|| format!("cannot create {}", options.out.display()))?;

    let corpus = Corpus::read(&options.data, options.held_out, options.seed)?;
    let tokenizer = train_tokenizer(&corpus, options.vocabulary)?;
    let tokens = TokenizedCorpus::encode(&corpus, &tokenizer)?;
    for (text, tokens) in corpus.domains.iter().zip(&tokens.domains) {
        let bytes: usize = text.training.iter().map(String::len).sum();
        println!("{:12} {bytes:9} training bytes, {:8} tokens", text.name, tokens.training.len());
    }

    let config = options.config()?;
    let training = options.training();
    let trainer = match options.resume {
        true => Trainer::resume(&config, &tokens, training, &checkpoint)?,
        false => Trainer::new(&config, &tokens, training)?,
    };
    let mut trainer = trainer.with_workers(options.workers);
    println!("{} parameters, step {} of {}", trainer.parameters(), trainer.step(), options.steps);

    let bar = ProgressBar::new(options.steps).with_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} steps, {elapsed} gone, {eta} left; {msg}",
    )?);
    bar.set_position(trainer.step());
    bar.reset_eta();
    let (mut loss, mut balance) = (None, 0.0);
    while trainer.step() < options.steps {
        let (started, until) = (Instant::now(), trainer.step() / options.checkpoint_every + 1);
        let mut tokens = 0;
        trainer.run(until * options.checkpoint_every, |progress| {
            // A running mean over some 20 steps.
            loss = Some(loss.map_or(progress.loss, |mean| 0.95 * mean + 0.05 * progress.loss));
            balance = progress.balance;
            tokens += progress.tokens;
            let speed = tokens as f64 / started.elapsed().as_secs_f64();
            bar.set_position(progress.step);
            bar.set_message(format!("loss {:.3}, balance {balance:.2}, {speed:.0} tokens/s", loss.unwrap_or_default()));
        })?;
        trainer.save(&checkpoint)?;
        trainer.export(&options.out, &tokenizer)?;
        let line = format!("step {} loss {:.4} balance {balance:.3}", trainer.step(), loss.unwrap_or_default());
        bar.suspend(|| println!("{line}, {:.1} s", started.elapsed().as_secs_f64()));
    }
    bar.finish();
    for domain in held_out_bits(trainer.model(), &tokens, options.length, options.workers)? {
        println!("{:12} {:.4} bits a byte of held-out text", domain.domain, domain.bits_per_byte());
    }
    Ok(())
}
