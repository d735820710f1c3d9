//! Text of labelled domains: folders, made-up languages, tokens.

mod corpus;
mod data;
mod grammar;
mod synthetic_mix;
mod tokenize;

pub use corpus::{Corpus, Domain};
pub use data::{DataOptions, FolderMix, Prepared};
pub use synthetic_mix::{Letters, SyntheticMix};
pub use tokenize::{END_OF_TEXT, TokenizedCorpus, TokenizedDocument, TokenizedDomain, read_tokenizer, train_tokenizer};
