//! Answers how large a cache a model needs, under which policy, and how fast it is then.
//!
//! ```text
//! cargo run --release --example advise -- answer TRACE --model gpt-oss-20b --profile laptop-gpu --tokens-per-second 20
//! cargo run --release --example advise -- measure --out profile.json
//! cargo run --release --example advise -- residency ROUTE.csv --cache 4000MiB
//! ```

mod answer;
mod measure;
mod model;
mod page;
mod report;
mod residency;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Find the smallest expert cache that is fast enough.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find the smallest cache, its policy and prefetcher that make a model fast enough on a machine.
    Answer(Box<answer::Arguments>),
    /// Measure this machine, and write its profile.
    Measure(measure::Arguments),
    /// Compare the simulator with a recorded run, access by access.
    Residency(residency::Arguments),
}

fn main() -> ExitCode {
    moe_examples::set_threads(moe_examples::processors());
    moe_examples::run(program)
}

fn program() -> Result<()> {
    match moe_examples::parse::<Arguments>().command {
        Command::Answer(arguments) => answer::run(&arguments),
        Command::Measure(arguments) => measure::run(&arguments),
        Command::Residency(arguments) => residency::run(&arguments),
    }
}
