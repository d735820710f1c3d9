//! Runs experiments of the routing testbed, and reports what came of them.
//!
//! ```text
//! cargo run --release --example testbed -- run examples/testbed/smoke.toml
//! cargo run --release --example testbed -- report target/testbed/smoke
//! ```

mod figures;
mod forecast;
mod jobs;
mod machine;
mod page;
mod report;
mod run;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;

/// Tensors come and go at every operation, which the allocator of most systems gives back to it each time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Train small Mixture-of-Experts models on labelled domains and compare their routing.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run an experiment, or what is left of it.
    Run(run::Arguments),
    /// Compare the runs of an experiment.
    Report(report::Arguments),
}

fn main() -> ExitCode {
    // Runs and their workers are side by side, each tensor operation in one thread.
    moe_examples::set_threads(1);
    moe_examples::run(program)
}

fn program() -> Result<()> {
    match moe_examples::parse::<Arguments>().command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
    }
}
