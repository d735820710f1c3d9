//! `moescope trace cat`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use moe_trace::{Concatenation, RoutingSource, ShardedWriter};

use super::input::{Foreign, open};
use super::output::{Output, append, write};

/// Put traces of equal geometry together, or append them to shards.
#[derive(Args)]
#[command(after_help = "Example:\n  moescope trace cat all.safetensors one.safetensors another.safetensors")]
pub(crate) struct Arguments {
    #[command(flatten)]
    output: Output,
    /// Traces to put together, in this order.
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Append to the directory of shards OUTPUT, whose capture may be finished or interrupted.
    #[arg(long, requires = "shard_tokens")]
    append: bool,
    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    arguments.output.check(&arguments.inputs, &arguments.foreign)?;
    let open =
        |path: &PathBuf| open(path, &arguments.foreign).with_context(|| format!("cannot open {}", path.display()));
    let sources = arguments.inputs.iter().map(open).collect::<Result<Vec<_>>>()?;
    let all = Concatenation::new(sources).with_context(|| {
        let names: Vec<String> = arguments.inputs.iter().map(|path| path.display().to_string()).collect();
        format!("these do not fit together (source 0 is the first): {}", names.join(", "))
    })?;
    match (arguments.append, arguments.output.shard_tokens) {
        (true, Some(shard_tokens)) => {
            let known = moe_trace::open(&arguments.output.path)?.domains().to_vec();
            if all.domains() != known {
                bail!(
                    "the domains are {:?}, those of {} are {known:?}",
                    all.domains(),
                    arguments.output.path.display()
                );
            }
            let mut writer = ShardedWriter::append(&arguments.output.path, shard_tokens)?;
            append(&all, &mut writer)?;
            writer.finish()?;
            moescope_cli::outln!("{}: {} sequences appended", arguments.output.path.display(), all.len());
            Ok(())
        }
        _ => write(&all, &arguments.output),
    }
}
