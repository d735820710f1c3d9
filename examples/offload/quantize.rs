//! The experts of a checkpoint in another type.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use moe_offload::{FileReads, QuantizedExperts, WeightType};

use crate::expert_files;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of an OLMoE checkpoint in the Hugging Face layout [default: the model of this repository].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Type of the weights: f32, f16, bf16, or a block type of GGUF files (`q8_0`, `q4_0`, `q6_k`, `q4_k`, ...); those with a
    /// k need rows of a multiple of 256 weights.
    #[arg(long = "type", default_value = "q8_0")]
    weight_type: WeightType,

    /// GGUF file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let checkpoint = moe_examples::open_checkpoint(arguments.model.as_deref())?;
    let experts = expert_files::of_checkpoint(&checkpoint, FileReads::Cached)?;
    expert_files::write(&QuantizedExperts::new(Arc::new(experts), arguments.weight_type)?, &arguments.out)
}
