//! The command line over the workspace: traces, metrics, plans, measured offloading, training.

mod bench_copy;
mod compare;
mod evaluate;
mod measure;
mod metrics;
mod offload;
mod plan;
mod report;
mod shell;
mod testbed;
mod trace;
mod train;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;

use crate::offload::{correlate, generate_experts, quantize, run as offloaded};

/// Tensors come and go at every operation; the allocators of most systems return their memory to the system each time.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Measure, plan and run Mixture-of-Experts models whose experts do not fit into fast memory.
#[derive(Parser)]
#[command(name = "moescope", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Trace(trace::Arguments),
    Metrics(metrics::Arguments),
    Report(report::Arguments),
    Plan(Box<plan::Arguments>),
    Measure(measure::Arguments),
    Compare(compare::Arguments),
    Run(Box<offloaded::Arguments>),
    GenerateExperts(generate_experts::Arguments),
    Quantize(quantize::Arguments),
    Correlate(Box<correlate::Arguments>),
    BenchCopy(bench_copy::Arguments),
    Train(Box<train::Options>),
    Evaluate(evaluate::Arguments),
    Testbed(testbed::Arguments),
    Completions(shell::Completions),
    Man(shell::Man),
}

fn main() -> ExitCode {
    let arguments = moescope_cli::parse::<Arguments>();
    moescope_cli::set_threads(threads(&arguments.command));
    moescope_cli::run(|| run(&arguments.command))
}

/// Returns the threads of one tensor operation. Training runs workers side by side, each with one thread per operation.
fn threads(command: &Command) -> usize {
    match command {
        Command::Train(_) | Command::Evaluate(_) | Command::Testbed(_) => 1,
        _ => moescope_cli::processors(),
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Trace(arguments) => trace::run(arguments),
        Command::Metrics(arguments) => metrics::run(arguments),
        Command::Report(arguments) => report::run(arguments),
        Command::Plan(arguments) => plan::run(arguments),
        Command::Measure(arguments) => measure::run(arguments),
        Command::Compare(arguments) => compare::run(arguments),
        Command::Run(arguments) => offloaded::run(arguments),
        Command::GenerateExperts(arguments) => generate_experts::run(arguments),
        Command::Quantize(arguments) => quantize::run(arguments),
        Command::Correlate(arguments) => correlate::run(arguments),
        Command::BenchCopy(arguments) => bench_copy::run(arguments),
        Command::Train(options) => train::run(options),
        Command::Evaluate(arguments) => evaluate::run(arguments),
        Command::Testbed(arguments) => testbed::run(arguments),
        Command::Completions(arguments) => arguments.write(),
        Command::Man(arguments) => arguments.write(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Calls `visit` with every command that has no sub-commands, and with the words that name it.
    fn leaves(command: &clap::Command, words: &[String], visit: &mut dyn FnMut(&clap::Command, &[String])) {
        let words = [words, &[command.get_name().to_owned()]].concat();
        let mut below = command.get_subcommands().filter(|command| command.get_name() != "help").peekable();
        if below.peek().is_none() {
            visit(command, &words);
        }
        below.for_each(|command| leaves(command, &words, visit));
    }

    #[test]
    fn the_help_of_every_command_has_an_example_that_parses() {
        let root = Arguments::command();
        root.clone().debug_assert();
        let mut examples = 0;
        leaves(&root, &[], &mut |command, words| {
            let name = words.join(" ");
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  ")).collect();
            assert!(help.starts_with("Example:\n") && !lines.is_empty(), "{name} has no example");
            for line in lines {
                assert!(
                    line.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')),
                    "an example of {name} is {line}"
                );
                if let Err(error) = Arguments::try_parse_from(line.split(' ')) {
                    panic!("{line}: {error}");
                }
                examples += 1;
            }
        });
        assert!(examples > 20, "{examples} examples");
    }

    #[test]
    fn every_command_says_in_one_sentence_what_it_does() {
        leaves(&Arguments::command(), &[], &mut |command, words| {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.contains('\n'), "{}: {about:?}", words.join(" "));
        });
    }
}
