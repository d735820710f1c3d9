//! Everything that one does with traces: look, import, export, convert, slice, concatenate, check, draw.
//!
//! ```text
//! cargo run --release --example trace -- import recording.csv trace.safetensors
//! cargo run --release --example trace -- info trace.safetensors
//! cargo run --release --example trace -- heatmap trace.safetensors heatmap.svg --layer 3
//! ```
//!
//! Parquet is read and written with `--features parquet`.

mod cat;
mod convert;
mod export;
mod heatmap;
mod import;
mod info;
mod input;
mod output;
mod slice;
mod svg;
#[cfg(test)]
mod tests;
mod validate;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use moe_examples::table;
use moe_trace::{exporters, importers};

/// Look into traces of Mixture-of-Experts routing, and move them between formats.
///
/// Wherever an INPUT is asked for, a trace file, a directory of shards, or a file of any format that `formats` lists will
/// do; the format is detected from the content.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what a trace has: geometry, columns, sequences, phases, domains.
    Info(info::Arguments),
    /// Turn a file of another recorder into a trace.
    Import(import::Arguments),
    /// Write a trace in another format.
    Export(export::Arguments),
    /// Turn a trace file into shards, shards into a file, or the plain layout into either.
    Convert(convert::Arguments),
    /// Cut sequences, domains, a phase or layers out of a trace.
    Slice(slice::Arguments),
    /// Put traces of equal geometry together, or append them to shards.
    Cat(cat::Arguments),
    /// Read a whole trace and tell everything that is wrong with it.
    Validate(validate::Arguments),
    /// Draw one layer of one sequence, tokens by experts, as an SVG picture.
    Heatmap(heatmap::Arguments),
    /// List the formats that can be imported and exported.
    Formats,
}

fn main() -> ExitCode {
    moe_examples::run(|| run(moe_examples::parse::<Arguments>()))
}

fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Info(arguments) => info::run(&arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Convert(arguments) => convert::run(&arguments),
        Command::Slice(arguments) => slice::run(&arguments),
        Command::Cat(arguments) => cat::run(&arguments),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Heatmap(arguments) => heatmap::run(&arguments),
        Command::Formats => {
            let mut formats = table(["", "format", "what"]);
            for importer in importers() {
                formats.add_row(["import", importer.name(), importer.description()]);
            }
            for exporter in exporters() {
                formats.add_row(["export", exporter.name(), exporter.description()]);
            }
            moe_examples::outln!("{formats}");
            Ok(())
        }
    }
}
