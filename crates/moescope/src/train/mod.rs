//! Trains a small OLMoE on a folder of text, one sub-folder a domain.

mod options;

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use indicatif::{ProgressBar, ProgressStyle};
use moe_model::OlmoeConfig;
use moe_testbed::{Corpus, TokenizedCorpus, TrainOptions, Trainer, held_out_bits, train_tokenizer, training_bytes};
use moe_trace::FolderLock;
use moescope_cli::{Files, check_memory, shown};

pub(crate) use self::options::Options;

/// What a run goes on from, and the model that it writes, in the folder of --out.
const CHECKPOINT: &str = "training.safetensors";
const MODEL: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

pub(crate) fn run(options: &Options) -> Result<()> {
    let checkpoint = options.out.join(CHECKPOINT);
    let files = Files::new().reads_tree("the text", &options.data);
    files.writes_in("--out", &options.out, &[&[CHECKPOINT], &MODEL[..]].concat()).check()?;
    let (config, training) = (options.config()?, options.training());
    training.check(&config)?;
    let device = options.device.open()?;
    check_training(options, &config, &training, &device)?;
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
    let _lock = FolderLock::take(&options.out).with_context(|| format!("cannot write to {}", options.out.display()))?;

    let corpus = Corpus::read(&options.data, options.held_out, options.seed)?;
    let tokenizer = train_tokenizer(&corpus, options.vocabulary)?;
    let tokens = TokenizedCorpus::encode(&corpus, &tokenizer)?;
    for (text, tokens) in corpus.domains.iter().zip(&tokens.domains) {
        let bytes: usize = text.training.iter().map(String::len).sum();
        moescope_cli::outln!("{:12} {bytes:9} training bytes, {:8} tokens", shown(&text.name), tokens.training.len());
    }

    let trainer = match options.resume {
        true => Trainer::resume(&config, &tokens, training, &device, &checkpoint)?,
        false => Trainer::new(&config, &tokens, training, &device)?,
    };
    let mut trainer = trainer.with_workers(options.workers)?;
    moescope_cli::outln!("{} parameters, step {} of {}", trainer.parameters(), trainer.step(), options.steps);

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
        bar.suspend(|| moescope_cli::outln!("{line}, {:.1} s", started.elapsed().as_secs_f64()));
    }
    bar.finish();
    // Again, for a run that was interrupted between its last checkpoint and the model made of it.
    trainer.export(&options.out, &tokenizer)?;
    for domain in held_out_bits(trainer.model(), &tokens, options.length, options.workers)? {
        moescope_cli::outln!("{:12} {:.4} bits a byte of held-out text", shown(&domain.domain), domain.bits_per_byte());
    }
    Ok(())
}

/// Refuses a model that cannot be trained in the free memory.
fn check_training(options: &Options, config: &OlmoeConfig, training: &TrainOptions, device: &Device) -> Result<()> {
    let needed = training_bytes(config, training, options.workers.max(1)) as u64;
    let advice = "give smaller --hidden, --layers, --experts, --expert-width, --vocabulary, --length or --micro-batch, or \
                  fewer --workers";
    check_memory(device, needed, &format!("training {} parameters", config.parameters()), advice)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn options(line: &str) -> Result<Box<Options>> {
        let words = ["moescope", "train", "text", "--out", "out"].into_iter().chain(line.split(' '));
        match crate::Arguments::try_parse_from(words)?.command {
            crate::Command::Train(options) => Ok(options),
            _ => unreachable!("the line begins with train"),
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused_before_any_work() {
        for (line, allowed) in [
            ("--length=1", "give a whole number from 2 to 16777216"),
            ("--hidden=2000000000", "give a whole number from 2 to 65536"),
            ("--vocabulary=256", "give a whole number from 257 to 65536"),
            ("--held-out=0.6", "give a number above 0, at most 0.5"),
            ("--steps=-1", "give a whole number of at least 1"),
            ("--lr=0", "give a number above 0"),
        ] {
            let error = format!("{:#}", options(line).err().unwrap());
            let (option, value) = line.split_once('=').unwrap();
            assert!(error.contains(&format!("invalid value '{value}' for '{option} ")), "{error}");
            assert!(error.contains(allowed), "{error}");
        }
    }

    #[test]
    fn a_model_that_cannot_be_trained_in_memory_is_refused_before_any_work() {
        let check = |line: &str| {
            let options = options(line).unwrap();
            check_training(&options, &options.config().unwrap(), &options.training(), &Device::Cpu)
        };
        check("--hidden 32 --experts 4 --batch 1 --micro-batch 1").unwrap();
        let error = check("--hidden 65536 --layers 64 --experts 1024").unwrap_err().to_string();
        assert!(error.contains("GiB are free: give smaller --hidden"), "{error}");
    }
}
