//! `moescope trace slice`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use moe_trace::{DomainId, LayerId, Phase, RoutingSource, Selection, TraceView};
use moescope_cli::{Numbers, distinct_numbers, numbers, phase, shown};

use super::input::{Foreign, open};
use super::output::{Output, write};

/// Cut sequences, domains, a phase or layers out of a trace.
#[derive(Args)]
#[command(after_help = "Example:\n  moescope trace slice trace.safetensors decode.safetensors --phase decode")]
pub(crate) struct Arguments {
    /// Trace to read.
    input: PathBuf,
    #[command(flatten)]
    output: Output,
    /// Sequences by number, like 0,3..5 (3 and 4) or 3..=5, in the order wanted.
    #[arg(long, value_name = "LIST", value_parser = numbers)]
    sequences: Option<Numbers>,
    /// Sequences of this domain; can be given several times.
    #[arg(long, value_name = "NAME")]
    domain: Vec<String>,
    /// Tokens of this phase: prefill or decode. Every run of them becomes a sequence of its own.
    #[arg(long, value_parser = phase)]
    phase: Option<Phase>,
    /// MoE layers, counted from 0, in the order wanted.
    #[arg(long, value_name = "LIST", value_parser = distinct_numbers)]
    layers: Option<Numbers>,
    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    arguments.output.check(std::slice::from_ref(&arguments.input), &arguments.foreign)?;
    let source = open(&arguments.input, &arguments.foreign)?;
    let selection = Selection {
        sequences: arguments.sequences.clone().map(|list| list.0),
        domains: domains(&arguments.domain, source.as_ref())?,
        phase: arguments.phase,
        layers: arguments.layers.as_ref().map(layer_ids).transpose()?,
    };
    let view =
        TraceView::new(source, &selection).with_context(|| format!("cannot slice {}", arguments.input.display()))?;
    if view.is_empty() {
        bail!("nothing is left of {}", arguments.input.display());
    }
    write(&view, &arguments.output)
}

fn domains(names: &[String], source: &dyn RoutingSource) -> Result<Option<Vec<DomainId>>> {
    if names.is_empty() {
        return Ok(None);
    }
    let id = |name: &String| {
        let found = source.domains().iter().position(|known| known == name).and_then(|id| u16::try_from(id).ok());
        found
            .map(DomainId)
            .with_context(|| format!("no domain `{name}`; there are: {}", shown(&source.domains().join(", "))))
    };
    names.iter().map(id).collect::<Result<_>>().map(Some)
}

fn layer_ids(layers: &Numbers) -> Result<Vec<LayerId>> {
    let id = |&layer: &usize| u16::try_from(layer).map(LayerId).with_context(|| format!("no layer {layer}"));
    layers.0.iter().map(id).collect()
}
