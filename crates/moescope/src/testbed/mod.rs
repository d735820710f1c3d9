//! Runs experiments of the routing testbed, and reports what came of them.

mod figures;
mod forecast;
mod jobs;
mod machine;
mod page;
mod report;
mod run;

use anyhow::Result;
use clap::Subcommand;

/// Train small Mixture-of-Experts models on labelled domains and compare their routing.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Run(run::Arguments),
    Report(report::Arguments),
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Run(arguments) => run::run(arguments),
        Command::Report(arguments) => report::run(arguments),
    }
}
