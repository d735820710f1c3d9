//! Mixture-of-Experts language models on candle with observable routers.

mod attention;
mod block;
mod checkpoint;
mod config;
mod config_file;
mod error;
mod generate;
mod kernels;
mod kv_cache;
mod norm;
mod olmoe;
mod rope;
mod router;
mod sampler;
mod tensors;
mod tokenizer;

pub use checkpoint::Checkpoint;
pub use config::{OlmoeConfig, OlmoeParams};
pub use error::{ModelError, Result};
pub use generate::{Finish, GenerateOptions, GenerateTimings, Generated, Generation, generate};
pub use kv_cache::KvCache;
pub use olmoe::{Chunk, DenseOutput, LogitsAt, Olmoe, resident_experts};
pub use router::RouterOutput;
pub use sampler::Sampling;
pub use tensors::{TensorKind, TensorSpec};
pub use tokenizer::Tokenizer;
