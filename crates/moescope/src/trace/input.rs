//! What a command reads.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use moe_trace::{ImportOptions, RoutingSource};
use moescope_cli::open_trace;

/// What a foreign file does not say about itself.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
pub(crate) struct Foreign {
    #[command(flatten)]
    foreign: moescope_cli::Foreign,

    /// The name of a foreign file's model.
    #[arg(long)]
    model: Option<String>,
}

impl Foreign {
    /// The file of --config.
    pub(crate) fn config(&self) -> Option<&PathBuf> {
        self.foreign.config.as_ref()
    }

    /// The options of an import.
    ///
    /// # Errors
    /// A configuration that cannot be read.
    pub(crate) fn options(&self) -> Result<ImportOptions> {
        Ok(ImportOptions { model: self.model.clone(), ..self.foreign.options()? })
    }
}

/// Opens a trace, or reads a foreign file into memory.
///
/// # Errors
/// A file that is neither, or broken; options that do not apply.
pub(crate) fn open(path: &Path, foreign: &Foreign) -> Result<Box<dyn RoutingSource>> {
    open_trace(path, &foreign.options()?)
}
