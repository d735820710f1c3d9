//! Mixture-of-Experts language models on candle with observable routers.
//!
//! [`Olmoe`] is the OLMoE architecture (Muennighoff et al. 2024, arXiv 2409.02060; `OlmoeForCausalLM` of Hugging Face).
//! Every router decision goes to a [`moe_trace::RouterObserver`], and the experts run through a
//! [`moe_offload::ExpertBank`], so that it does not matter to the model where their weights lie.
//!
//! Variants of it choose experts in [other ways](RouterKind), have shared experts or dense layers; [`OlmoeParams`] says
//! which.
//!
//! - A [`Checkpoint`] is a Hugging Face folder; [`Checkpoint::load_resident`] loads all of it, and [`Olmoe::new`] puts a
//!   model together from a `VarBuilder` and any bank.
//! - [`Olmoe::forward`] runs new tokens of several sequences on their own [`KvCache`]s, without padding; [`generate`]
//!   continues prompts with it.
//! - [`Olmoe::forward_dense`] runs whole sequences of one length with gradients, for training;
//!   [`Olmoe::forward_dense_with`] with domains, or with experts of limited capacity.
//!
//! Set the environment variable `RAYON_NUM_THREADS` (to the number of cores, say) in a program that runs small models on
//! the CPU: without it candle 0.11 asks the operating system for the number of cores at every matrix product, which made
//! decoding with the default model of this repository six times slower.
//!
//! ```
//! use candle_core::{DType, Device};
//! use moe_model::{Checkpoint, GenerateOptions, Sampling, generate};
//! use moe_trace::{LayerId, MemoryTrace, Recorder, RoutingSource};
//!
//! let checkpoint = Checkpoint::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/olmoe-mha"))?;
//! let model = checkpoint.load_resident(DType::F32, &Device::Cpu)?;
//! let tokenizer = checkpoint.tokenizer()?;
//!
//! let prompts = [tokenizer.encode("w7 w11 w13")?, tokenizer.encode("w17")?];
//! let options = GenerateOptions { max_new_tokens: 4, sampler: Sampling::Greedy, seeds: vec![], stop_tokens: vec![] };
//! let mut recorder = Recorder::new(MemoryTrace::new(checkpoint.config().geometry()));
//! let generated = generate(&model, &prompts, &options, &mut recorder, |_, _| {})?;
//! assert_eq!(generated.sequences[0].tokens.len(), 4);
//!
//! // Three tokens of the prompt and all new ones but the last went through the routers.
//! let trace = recorder.finish()?;
//! assert_eq!(trace.sequence(0)?.len(), 3 + 3);
//! assert_eq!(trace.sequence(0)?.experts(0, LayerId(2)).count(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod block;
mod checkpoint;
mod checkpoint_tensors;
mod config;
mod config_file;
mod error;
mod expert_layout;
mod foreign_fields;
mod fused;
mod fused_experts;
mod generate;
mod kernels;
mod kv_cache;
mod linear;
mod norm;
mod olmoe;
mod packed_experts;
mod rope;
mod routed;
mod router;
mod sampler;
mod tensors;
mod tokenizer;

pub use checkpoint::Checkpoint;
pub use config::{OlmoeConfig, OlmoeParams};
pub use error::{ModelError, Result};
pub use generate::{Finish, GenerateOptions, GenerateTimings, Generated, Generation, generate};
pub use kv_cache::KvCache;
pub use olmoe::{Chunk, DenseOptions, DenseOutput, LogitsAt, Olmoe, resident_experts};
pub use packed_experts::PackedExperts;
pub use router::{RouterKind, RouterOutput, reference_experts};
pub use sampler::Sampling;
pub use tensors::{TensorKind, TensorSpec};
pub use tokenizer::Tokenizer;
