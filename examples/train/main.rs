//! Trains a small OLMoE on a folder of text, one sub-folder a domain.

mod options;

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use mimalloc::MiMalloc;
use moe_examples::{Files, shown};
use moe_testbed::{Corpus, TokenizedCorpus, Trainer, held_out_bits, train_tokenizer};
use moe_trace::FolderLock;

use crate::options::Options;

/// What a run goes on from, and the model that it writes, in the folder of --out.
const CHECKPOINT: &str = "training.safetensors";
const MODEL: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// Tensors come and go at every operation, which the allocator of most systems gives back to it each time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // The workers run tensor operations side by side, each in one thread.
    moe_examples::set_threads(1);
    moe_examples::run(program)
}

fn program() -> Result<()> {
    let options = Options::parse();
    let checkpoint = options.out.join(CHECKPOINT);
    let files = Files::new().reads_tree("the text", &options.data);
    files.writes_in("--out", &options.out, &[&[CHECKPOINT], &MODEL[..]].concat()).check()?;
    ensure!(options.resume || !checkpoint.exists(), "{} exists: --resume it or remove it", checkpoint.display());
    ensure!(
        !options.resume || checkpoint.exists(),
        "{} does not exist, there is nothing to resume: leave out --resume to begin",
        checkpoint.display()
    );
    if let Some(model) =
        MODEL.iter().map(|name| options.out.join(name)).find(|file| file.exists() && !checkpoint.exists())
    {
        bail!("{} is of a model that was not trained here: give another folder for --out", model.display());
    }
    fs::create_dir_all(&options.out).with_context(|| format!("cannot create {}", options.out.display()))?;
    let _lock = FolderLock::take(&options.out).with_context(|| options.out.display().to_string())?;

    let corpus = Corpus::read(&options.data, options.held_out, options.seed)?;
    let tokenizer = train_tokenizer(&corpus, options.vocabulary)?;
    let tokens = TokenizedCorpus::encode(&corpus, &tokenizer)?;
    for (text, tokens) in corpus.domains.iter().zip(&tokens.domains) {
        let bytes: usize = text.training.iter().map(String::len).sum();
        moe_examples::outln!("{:12} {bytes:9} training bytes, {:8} tokens", shown(&text.name), tokens.training.len());
    }

    let (config, device) = (options.config()?, options.device.open()?);
    let training = options.training();
    let trainer = match options.resume {
        true => Trainer::resume(&config, &tokens, training, &device, &checkpoint)?,
        false => Trainer::new(&config, &tokens, training, &device)?,
    };
    let mut trainer = trainer.with_workers(options.workers)?;
    moe_examples::outln!("{} parameters, step {} of {}", trainer.parameters(), trainer.step(), options.steps);

    let bar = ProgressBar::new(options.steps)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} steps, {elapsed} gone, {eta} left; {msg}")?);
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
        bar.suspend(|| moe_examples::outln!("{line}, {:.1} s", started.elapsed().as_secs_f64()));
    }
    bar.finish();
    // Again, for a run that was interrupted between its last checkpoint and the model made of it.
    trainer.export(&options.out, &tokenizer)?;
    for domain in held_out_bits(trainer.model(), &tokens, options.length, options.workers)? {
        moe_examples::outln!("{:12} {:.4} bits a byte of held-out text", shown(&domain.domain), domain.bits_per_byte());
    }
    Ok(())
}
