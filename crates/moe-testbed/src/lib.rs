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

mod error;
mod experiment;
mod measure;
mod text;
mod training;

pub use error::{Result, TestbedError};
pub use experiment::{
    Agreement, Architecture, BesideShuffled, CompleteRun, DenseLayers, DroppingEffect, Effects, Experiment,
    MatchedModel, PointSummary, RunConfig, RunEvent, RunFigures, RunFolder, RunSeconds, RunState, Spread, SrpFigures,
    Study, ValidationRecord,
};
pub use measure::{
    ByteNgram, DomainBits, HeldOut, Machine, MeasureOptions, PredictedSpeed, Reading, SpeedOptions, SpeedPlan,
    held_out_bits, ngram_bits,
};
pub use text::{
    Corpus, DataOptions, Domain, END_OF_TEXT, FolderMix, Letters, Prepared, SyntheticMix, TokenizedCorpus,
    TokenizedDocument, TokenizedDomain, read_tokenizer, train_tokenizer,
};
pub use training::{
    AdamW, AdamWOptions, BalanceScope, Balancing, Batch, Batches, Progress, Schedule, TrainOptions, Trainer,
    cross_entropy, load_balance, load_balance_at, router_z_loss, sequence_balance, training_bytes, update_biases,
};
