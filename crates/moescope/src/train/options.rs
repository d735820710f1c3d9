//! What the command line decides.

use std::path::PathBuf;

use anyhow::Result;
use moe_model::{OlmoeConfig, OlmoeParams};
use moe_testbed::{Balancing, TrainOptions};
use moescope_cli::{DeviceName, HELD_OUT, POSITIVE, number, whole};

/// Sequences of a step, at most.
const MOST_SEQUENCES: u64 = 1 << 20;

/// Train a small Mixture-of-Experts language model and write it as a Hugging Face folder.
///
/// The run is decided by its options and the text: the same command makes the same bytes. Interrupted runs go on with
/// --resume from the last checkpoint, OUT/training.safetensors.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  moescope train corpus --out model --steps 1000\n  moescope train corpus --out model --resume"
)]
pub(crate) struct Options {
    /// Folder with one sub-folder of UTF-8 text files a domain
    pub(crate) data: PathBuf,
    /// Folder for the model
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
    /// Device to train on: cpu, cuda, or cuda:N with the number of a GPU; only on the CPU does a run make the same bytes
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(crate) device: DeviceName,
    /// Optimizer steps
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = whole::<u64>(1..))]
    pub(crate) steps: u64,
    /// Sequences a step
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole::<usize>(1..=MOST_SEQUENCES))]
    pub(crate) batch: usize,
    /// Sequences that go through the model at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = whole::<usize>(1..=MOST_SEQUENCES))]
    pub(crate) micro_batch: usize,
    /// Tokens a sequence; also the longest sequence that the model can read
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = whole::<usize>(2..=1 << 24))]
    pub(crate) length: usize,
    /// Highest learning rate
    #[arg(long, value_name = "N", default_value_t = 3e-3, value_parser = number(POSITIVE))]
    pub(crate) lr: f64,
    /// Steps of warm-up
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = whole::<u64>(0..))]
    pub(crate) warm_up: u64,
    /// Weight of the load-balance loss
    #[arg(long, value_name = "N", default_value_t = 0.01, value_parser = number(0.0..))]
    pub(crate) balance: f64,
    /// Seed of the split, the weights and the order of the text
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<u64>(0..))]
    pub(crate) seed: u64,
    /// Share of each domain's text that is held out
    #[arg(long, value_name = "N", default_value_t = 0.05, value_parser = number(HELD_OUT))]
    pub(crate) held_out: f64,
    /// Tokens of the byte-level BPE
    #[arg(long, value_name = "N", default_value_t = 3072, value_parser = whole::<usize>(257..=65536))]
    pub(crate) vocabulary: usize,
    /// Decoder layers
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = whole::<usize>(1..=1024))]
    pub(crate) layers: usize,
    /// Width of the residual stream
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = whole::<usize>(2..=65536))]
    pub(crate) hidden: usize,
    /// Attention heads
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = whole::<usize>(1..=1024))]
    pub(crate) heads: usize,
    /// Experts a layer
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole::<usize>(1..=65535))]
    pub(crate) experts: usize,
    /// Experts a token uses in a layer
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = whole::<usize>(1..=65535))]
    pub(crate) top_k: usize,
    /// Width inside an expert
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = whole::<usize>(1..=1 << 20))]
    pub(crate) expert_width: usize,
    /// Threads; each computes a micro-batch of its own
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole::<usize>(0..=1024))]
    pub(crate) workers: usize,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = whole::<u64>(1..))]
    pub(crate) checkpoint_every: u64,
    /// Go on from the last checkpoint
    #[arg(long)]
    pub(crate) resume: bool,
}

impl Options {
    /// The model.
    pub(crate) fn config(&self) -> Result<OlmoeConfig> {
        Ok(OlmoeConfig::new(OlmoeParams {
            vocab_size: self.vocabulary,
            hidden_size: self.hidden,
            intermediate_size: self.expert_width,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.heads,
            num_experts: self.experts,
            num_experts_per_tok: self.top_k,
            norm_topk_prob: true,
            max_position_embeddings: self.length,
            tie_word_embeddings: true,
            initializer_range: 0.05,
            eos_token_ids: vec![0],
            ..OlmoeParams::default()
        })?)
    }

    /// The run.
    pub(crate) fn training(&self) -> TrainOptions {
        TrainOptions {
            steps: self.steps,
            batch: self.batch,
            micro_batch: self.micro_batch,
            length: self.length,
            peak_rate: self.lr,
            warm_up: self.warm_up,
            balancing: Balancing { coefficient: self.balance, ..Balancing::default() },
            seed: self.seed,
            ..TrainOptions::default()
        }
    }
}
