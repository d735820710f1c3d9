//! Runs models whose experts do not fit, measures it, and compares with what the simulator predicts.
//!
//! ```text
//! cargo run --release --example offload -- speed
//! cargo run --release --example offload -- quantize --model DIR --type q4_0 --out experts.gguf
//! cargo run --release --example offload -- speed --model DIR --weights experts.gguf --store disk
//! cargo run --release --example offload -- generate --shape gpt-oss-20b --type q4_0 --layers 6 --out experts.gguf
//! cargo run --release --example offload -- speed --weights experts.gguf --trace decode.safetensors --store disk
//! cargo run --release --example offload -- speed --misses load,host --transfers 1 --timeline timeline.json
//! cargo run --release --example offload -- relate one.safetensors another.safetensors
//! ```

mod calibrate;
mod case;
mod disk_probe;
mod excerpt;
mod expert_files;
mod generate;
mod live;
mod page;
mod quantize;
mod relate;
mod relation;
mod relation_page;
mod report;
mod speed;
mod steps;
mod stores;
mod workload;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Run a model with most of its experts out of the cache.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure tokens per second over cache sizes, policies, prefetchers and what misses do, beside the prediction.
    Speed(Box<speed::Arguments>),
    /// Write random experts of a model's shape, to measure real sizes without a download.
    Generate(generate::Arguments),
    /// Write the experts of a checkpoint in another type, for `speed --weights`.
    Quantize(quantize::Arguments),
    /// Measure what offloading costs models of different routing, and how that goes with SRP, SCH and LRU hits.
    Relate(Box<relate::Arguments>),
}

fn main() -> ExitCode {
    moe_examples::set_threads(moe_examples::processors());
    moe_examples::run(program)
}

fn program() -> Result<()> {
    match moe_examples::parse::<Arguments>().command {
        Command::Speed(arguments) => speed::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Quantize(arguments) => quantize::run(&arguments),
        Command::Relate(arguments) => relate::run(&arguments),
    }
}
