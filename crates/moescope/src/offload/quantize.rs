//! The experts of a checkpoint in another type.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use moe_model::{Checkpoint, Chunk, KvCache, LogitsAt, Olmoe};
use moe_offload::{Divergence, ExpertStore, FileReads, OffloadOptions, OffloadedExperts, QuantizedExperts, WeightType};
use moe_trace::{IgnoreRouting, Phase};
use moescope_cli::{Files, open_checkpoint};

use super::expert_files;
use super::workload::prompts;

/// Write the experts of a checkpoint in another type, for `run --weights`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moescope quantize --model models/default --type q4_0 --out experts.gguf")]
pub(crate) struct Arguments {
    /// Folder of an OLMoE checkpoint in the Hugging Face layout [default: the model of this repository].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Type of the weights: f32, f16, bf16, or a block type of GGUF files (`q8_0`, `q4_0`, `q6_k`, `q4_k`, ...); those with a
    /// k need rows of a multiple of 256 weights.
    #[arg(long = "type", value_name = "TYPE", default_value = "q8_0")]
    weight_type: WeightType,

    /// GGUF file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Then read the prompts of the default model with both, and tell how far the logits are apart.
    #[arg(long)]
    compare: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let checkpoint = open_checkpoint(arguments.model.as_deref())?;
    Files::new()
        .reads_model(checkpoint.folder())
        .writes_regular("--out", &arguments.out, "the parts of a GGUF file are written out of order")
        .check()?;
    let experts: Arc<dyn ExpertStore> = Arc::new(expert_files::of_checkpoint(&checkpoint, FileReads::Cached)?);
    expert_files::write(&QuantizedExperts::new(Arc::clone(&experts), arguments.weight_type)?, &arguments.out)?;
    if arguments.compare {
        let quantized = Arc::new(expert_files::of_gguf(&arguments.out, FileReads::Auto)?);
        let divergence = divergence(&checkpoint, experts, quantized)?;
        let first = match divergence.first_token {
            Some(token) => format!("the likeliest next token first differs after token {token}"),
            None => "the likeliest next token is always the same".to_owned(),
        };
        let Divergence { tokens, largest, .. } = divergence;
        moescope_cli::outln!("over {tokens} tokens {first}; the largest difference of two logits is {largest:.3}");
    }
    Ok(())
}

/// How far the logits of the prompts are apart with two sets of experts.
fn divergence(
    checkpoint: &Checkpoint,
    expected: Arc<dyn ExpertStore>,
    found: Arc<dyn ExpertStore>,
) -> Result<Divergence> {
    let config = checkpoint.config();
    let vb = checkpoint.var_builder(DType::F32, &Device::Cpu)?;
    let model = |store: Arc<dyn ExpertStore>| -> Result<Olmoe> {
        let options = OffloadOptions::slots(config.geometry().top_k());
        Ok(Olmoe::new(config, &vb, Arc::new(OffloadedExperts::new(store, &Device::Cpu, options)?))?)
    };
    let logits = |model: &Olmoe, tokens: &[u32]| -> Result<Tensor> {
        let mut cache = KvCache::new(config);
        let mut chunks = [Chunk { sequence: 0, tokens, cache: &mut cache, phase: Phase::Prefill }];
        Ok(Tensor::cat(&model.forward(&mut chunks, LogitsAt::All, &mut IgnoreRouting)?, 0)?)
    };
    let (expected, found) = (model(expected)?, model(found)?);
    let mut divergence = Divergence::default();
    for prompt in prompts(checkpoint, config.params().max_position_embeddings)? {
        divergence.add(&logits(&expected, &prompt)?, &logits(&found, &prompt)?)?;
    }
    Ok(divergence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantized_experts_are_near_and_not_the_same() {
        let checkpoint = open_checkpoint(None).unwrap();
        let experts: Arc<dyn ExpertStore> =
            Arc::new(expert_files::of_checkpoint(&checkpoint, FileReads::Cached).unwrap());
        let against = |weight_type: WeightType| {
            let quantized = Arc::new(QuantizedExperts::new(Arc::clone(&experts), weight_type).unwrap());
            divergence(&checkpoint, Arc::clone(&experts), quantized).unwrap()
        };
        let (same, near, far) = (against(WeightType::F32), against(WeightType::Q8_0), against(WeightType::Q4_0));
        assert!(same.is_none() && same.tokens > 100, "{same:?}");
        assert!(near.largest > 0.0 && near.largest < far.largest, "{near:?} {far:?}");
    }
}
