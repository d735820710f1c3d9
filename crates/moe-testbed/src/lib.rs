//! Small-scale training of Mixture-of-Experts language models on labelled domains.
//!
//! A [`Corpus`] is a folder with one sub-folder of text a domain, of which a part is [held out](Corpus::read). A
//! byte-level BPE ([`train_tokenizer`]) turns it into a [`TokenizedCorpus`], a [`Trainer`] makes an OLMoE of it or a
//! variant with another [router](moe_model::RouterKind), as reproducible as it is interruptible, and [`held_out_bits`] says how well the model predicts each domain, beside a
//! [`ByteNgram`] of the same training text ([`ngram_bits`]). The unit is the bit per byte, so tokenizers do not matter.
//!
//! An [`Experiment`] is a file that declares text (folders, or a [`SyntheticMix`] that needs none), a base model, and
//! points that change its router, balancing or architecture. Each point and seed is a run in a [`RunFolder`] that can be
//! interrupted; its [`RunFigures`] say how the routing follows the domains, how local it is and what that means for speed
//! under offloading, each beside its nulls; a [`Study`] compares them with a reference router that knows the domains.
//!
//! ```
//! use candle_core::Device;
//! use moe_model::{OlmoeConfig, OlmoeParams};
//! use moe_testbed::{Corpus, Domain, TokenizedCorpus, TrainOptions, Trainer, held_out_bits, train_tokenizer};
//!
//! // `Corpus::read` takes this from a folder.
//! let text = |n: usize| format!("{n} and {n} is {}.\n", n + n).repeat(8);
//! let domain =
//!     Domain { name: "sums".to_owned(), training: (0..40).map(text).collect(), held_out: (40..42).map(text).collect() };
//! let corpus = Corpus { domains: vec![domain] };
//!
//! let tokenizer = train_tokenizer(&corpus, 270)?;
//! let tokens = TokenizedCorpus::encode(&corpus, &tokenizer)?;
//! let config = OlmoeConfig::new(OlmoeParams {
//!     vocab_size: 270,
//!     hidden_size: 16,
//!     intermediate_size: 8,
//!     num_hidden_layers: 2,
//!     num_attention_heads: 2,
//!     num_key_value_heads: 2,
//!     num_experts: 4,
//!     num_experts_per_tok: 2,
//!     max_position_embeddings: 32,
//!     eos_token_ids: vec![0],
//!     ..OlmoeParams::default()
//! })?;
//! let options = TrainOptions { steps: 10, warm_up: 2, batch: 4, micro_batch: 4, length: 32, ..TrainOptions::default() };
//! let mut trainer = Trainer::new(&config, &tokens, options, &Device::Cpu)?;
//! let before = held_out_bits(trainer.model(), &tokens, 32, 1)?[0].bits_per_byte();
//! trainer.run(10, |progress| assert!(progress.loss < 6.0))?;
//! let after = held_out_bits(trainer.model(), &tokens, 32, 1)?[0].bits_per_byte();
//! assert!(after < before);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adamw;
mod architecture;
mod balancing;
mod batches;
mod checkpoint;
mod checkpoint_digest;
mod corpus;
mod data;
mod effects;
mod error;
mod evaluate;
mod experiment;
mod export;
mod grammar;
mod held_out;
mod loss;
mod matched_experts;
mod measure_options;
mod memory;
mod micro_batch;
mod ngram;
mod points;
mod predicted_speed;
mod router_loss;
mod routing_counts;
mod run_figures;
mod run_folder;
mod schedule;
mod shuffled;
mod study;
mod synthetic_mix;
#[cfg(test)]
mod test_text;
mod tokenize;
mod train;

pub use adamw::{AdamW, AdamWOptions};
pub use architecture::{Architecture, DenseLayers, MatchedModel};
pub use balancing::{BalanceScope, Balancing};
pub use batches::{Batch, Batches};
pub use corpus::{Corpus, Domain};
pub use data::{DataOptions, FolderMix, Prepared};
pub use effects::{DroppingEffect, Effects};
pub use error::{Result, TestbedError};
pub use evaluate::{DomainBits, held_out_bits, ngram_bits};
pub use experiment::{Experiment, RunConfig};
pub use held_out::{HeldOut, Reading};
pub use loss::cross_entropy;
pub use measure_options::{Machine, MeasureOptions, SpeedOptions};
pub use memory::training_bytes;
pub use ngram::ByteNgram;
pub use predicted_speed::{PredictedSpeed, SpeedPlan};
pub use router_loss::{load_balance, load_balance_at, router_z_loss, sequence_balance, update_biases};
pub use run_figures::{Agreement, BesideShuffled, RunFigures, SrpFigures};
pub use run_folder::{RunEvent, RunFolder, RunSeconds, RunState, ValidationRecord};
pub use schedule::Schedule;
pub use study::{CompleteRun, PointSummary, Spread, Study};
pub use synthetic_mix::{Letters, SyntheticMix};
pub use tokenize::{END_OF_TEXT, TokenizedCorpus, TokenizedDocument, TokenizedDomain, read_tokenizer, train_tokenizer};
pub use train::{Progress, TrainOptions, Trainer};
