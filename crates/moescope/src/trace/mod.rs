//! Everything that one does with traces: look, import, export, convert, slice, concatenate, check, draw.
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

use anyhow::Result;
use clap::Subcommand;
use moe_trace::{exporters, importers};
use moescope_cli::table;

/// Look into traces of Mixture-of-Experts routing, and move them between formats.
///
/// Wherever an INPUT is asked for, a trace file, a directory of shards, or a file of any format that `formats` lists will
/// do; the format is detected from the content.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Info(info::Arguments),
    Import(import::Arguments),
    Export(export::Arguments),
    Convert(convert::Arguments),
    Slice(slice::Arguments),
    Cat(cat::Arguments),
    Validate(validate::Arguments),
    Heatmap(heatmap::Arguments),
    /// List the formats that can be imported and exported.
    #[command(after_help = "Example:\n  moescope trace formats")]
    Formats,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Info(arguments) => info::run(arguments),
        Command::Import(arguments) => import::run(arguments),
        Command::Export(arguments) => export::run(arguments),
        Command::Convert(arguments) => convert::run(arguments),
        Command::Slice(arguments) => slice::run(arguments),
        Command::Cat(arguments) => cat::run(arguments),
        Command::Validate(arguments) => validate::run(arguments),
        Command::Heatmap(arguments) => heatmap::run(arguments),
        Command::Formats => {
            let mut formats = table(["", "format", "what"]);
            for importer in importers() {
                formats.add_row(["import", importer.name(), importer.description()]);
            }
            for exporter in exporters() {
                formats.add_row(["export", exporter.name(), exporter.description()]);
            }
            moescope_cli::outln!("{formats}");
            Ok(())
        }
    }
}
