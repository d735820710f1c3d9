//! Small-scale training of Mixture-of-Experts language models on labelled domains.

mod adamw;
mod batches;
mod checkpoint;
mod corpus;
mod error;
mod evaluate;
mod export;
mod loss;
mod ngram;
mod schedule;
#[cfg(test)]
mod test_text;
mod tokenize;
mod train;

pub use adamw::{AdamW, AdamWOptions};
pub use batches::{Batch, Batches};
pub use corpus::{Corpus, Domain};
pub use error::{Result, TestbedError};
pub use evaluate::{DomainBits, held_out_bits, ngram_bits};
pub use loss::{cross_entropy, load_balance};
pub use ngram::ByteNgram;
pub use schedule::Schedule;
pub use tokenize::{END_OF_TEXT, TokenizedCorpus, TokenizedDocument, TokenizedDomain, train_tokenizer};
pub use train::{Progress, TrainOptions, Trainer};
