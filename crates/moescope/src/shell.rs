//! Files for shells and for `man`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use moescope_cli::{Files, write_bytes};

/// Write the completions of a shell.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope completions bash --out moescope.bash")]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,

    /// File to write [default: standard output].
    #[arg(long, value_name = "FILE", value_parser = moescope_cli::output_path(), default_value = "-", hide_default_value = true)]
    out: PathBuf,
}

impl Completions {
    pub(crate) fn write(&self) -> Result<()> {
        Files::new().writes("--out", &Some(self.out.clone())).check()?;
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Arguments::command(), "moescope", &mut text);
        write_bytes(&self.out, &text)
    }
}

/// Write one page per command for `man`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope man --out share/man/man1")]
pub(crate) struct Man {
    /// Folder of the pages.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

impl Man {
    pub(crate) fn write(&self) -> Result<()> {
        Files::new().writes_in("--out", &self.out, &[]).check()?;
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot create the folder {}", self.out.display()))?;
        clap_mangen::generate_to(crate::Arguments::command(), &self.out)
            .with_context(|| format!("cannot write the pages to {}", self.out.display()))
    }
}
