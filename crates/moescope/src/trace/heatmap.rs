//! `moescope trace heatmap`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use moe_trace::{LayerId, Phase, RoutingSource, Sequence};
use moescope_cli::{Files, whole, write_text};

use super::input::{Foreign, open};
use super::svg::{Cell, Picture};

/// Draw one layer of one sequence, tokens by experts, as an SVG picture.
#[derive(Args)]
#[command(after_help = "Example:\n  moescope trace heatmap trace.safetensors heatmap.svg --layer 3")]
pub(crate) struct Arguments {
    /// Trace to read.
    input: PathBuf,
    /// SVG file to write.
    #[arg(value_parser = moescope_cli::output_path())]
    output: PathBuf,
    /// Sequence to draw.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>(0..))]
    sequence: usize,
    /// MoE layer to draw, counted from 0.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<u16>(0..=65535))]
    layer: u16,
    /// First token to draw.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>(0..))]
    start: usize,
    /// How many tokens are drawn at most.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = whole::<usize>(1..))]
    tokens: usize,
    #[command(flatten)]
    foreign: Foreign,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let files =
        Files::new().reads_trace(&arguments.input).reads_all("the file of --config", arguments.foreign.config());
    files.writes("OUTPUT", &arguments.output).check()?;
    let source = open(&arguments.input, &arguments.foreign)?;
    draw(arguments, source.as_ref()).with_context(|| format!("cannot draw {}", arguments.input.display()))
}

fn draw(arguments: &Arguments, source: &dyn RoutingSource) -> Result<()> {
    let geometry = source.geometry();
    let layer = LayerId(arguments.layer);
    let Some(place) = geometry.moe_layers().get(layer.index()) else {
        bail!("there is no layer {}, the trace has {}", arguments.layer, geometry.layers());
    };
    let sequence = source.sequence(arguments.sequence)?;
    let end = sequence.len().min(arguments.start.saturating_add(arguments.tokens));
    if arguments.start >= end {
        bail!("there is no token {}, the sequence has {}", arguments.start, sequence.len());
    }
    let part = sequence.tokens(arguments.start..end);
    let mut title = format!("{}, sequence {}", source.model().unwrap_or("unnamed model"), arguments.sequence);
    if let Some(name) = sequence.domain().and_then(|domain| source.domains().get(domain.index())) {
        title.push_str(&format!(" ({name})"));
    }
    title.push_str(&format!(
        ", tokens {}..{end} of {}, MoE layer {} (layer {} of the model)",
        arguments.start,
        sequence.len(),
        arguments.layer,
        place.model_layer
    ));
    let picture = Picture {
        title,
        experts: geometry.experts(),
        labels: (0..part.len()).map(|token| label(&part, token, arguments.start)).collect(),
        decoded: (0..part.len()).map(|token| part.phase(token) == Phase::Decode).collect(),
        cells: cells(&part, layer),
    };
    write_text(&arguments.output, &picture.svg())?;
    moescope_cli::outln!("{}: {} tokens x {} experts", arguments.output.display(), part.len(), geometry.experts());
    Ok(())
}

/// The text of a token, else its id, else its number.
fn label(sequence: &Sequence<'_>, token: usize, start: usize) -> String {
    match (sequence.text(token), sequence.token_ids()) {
        (Some(text), _) => String::from_utf8_lossy(text).into_owned(),
        (None, Some(ids)) => ids[token].to_string(),
        (None, None) => (start + token).to_string(),
    }
}

/// The experts of each token; as dark as their weight, or as their rank where there are no weights.
fn cells(sequence: &Sequence<'_>, layer: LayerId) -> Vec<Cell> {
    let top_k = sequence.geometry().top_k();
    let mut cells = Vec::new();
    for token in 0..sequence.len() {
        match sequence.weighted_experts(token, layer) {
            Some(experts) => cells.extend(experts.enumerate().map(|(rank, (expert, weight))| Cell {
                token,
                expert: expert.index(),
                share: weight.clamp(0.0, 1.0),
                note: format!("expert {}, rank {rank}, weight {weight:.4}", expert.0),
            })),
            None => cells.extend(sequence.experts(token, layer).enumerate().map(|(rank, expert)| Cell {
                token,
                expert: expert.index(),
                share: 1.0 - rank as f32 / top_k as f32,
                note: format!("expert {}, rank {rank}", expert.0),
            })),
        }
    }
    cells
}
