//! Random experts of a model's shape.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use moe_offload::{ExpertShape, RandomExperts, WeightType};
use moe_trace::ModelSizes;
use moescope_cli::{Files, whole};

use super::expert_files;

/// Write random experts of a model's shape, to measure real sizes without a download.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  moescope generate-experts --shape gpt-oss-20b --type q4_0 --layers 6 --out experts.gguf"
)]
pub(crate) struct Arguments {
    /// Model whose experts are made up: gpt-oss-20b, qwen3-30b-a3b, or the folder of a checkpoint with a config.json.
    #[arg(long)]
    shape: String,

    /// Type of the weights: f32, f16, bf16, or a block type of GGUF files (`q8_0`, `q4_0`, `q6_k`, `q4_k`, ...); those with a
    /// k need rows of a multiple of 256 weights.
    #[arg(long = "type", value_name = "TYPE", default_value = "q8_0")]
    weight_type: WeightType,

    /// Make only the first layers [default: all].
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=65535))]
    layers: Option<usize>,

    /// Seed of the weights: the same seed gives the same bytes.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<u64>(0..))]
    seed: u64,

    /// GGUF file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    Files::new()
        .reads_model(&arguments.shape)
        .writes_regular("--out", &arguments.out, "the parts of a GGUF file are written out of order")
        .check()?;
    let mut shape = shape(&ModelSizes::find(&arguments.shape).context("cannot use --shape")?)?;
    if let Some(layers) = arguments.layers {
        ensure!((1..=shape.layers).contains(&layers), "--layers is {layers}, the model has {}", shape.layers);
        shape.layers = layers;
    }
    let experts = RandomExperts::new(shape, arguments.weight_type, arguments.seed)?;
    expert_files::write(&experts, &arguments.out)
}

/// The experts of all layers that have experts.
fn shape(sizes: &ModelSizes) -> Result<ExpertShape> {
    Ok(ExpertShape {
        layers: sizes.config.decoder.moe_layers.len(),
        experts: sizes.config.experts,
        hidden: sizes.hidden.try_into()?,
        intermediate: sizes.expert_intermediate.try_into()?,
    })
}
