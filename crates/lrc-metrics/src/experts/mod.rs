//! Metrics of single experts: load, words, co-activation, and change between two checkpoints.

mod coactivation;
mod load;
mod saturation;
mod vocabulary;

pub use coactivation::Coactivation;
pub use load::{LayerLoad, LoadBalance};
pub use saturation::Saturation;
pub use vocabulary::{ExpertVocabulary, TokenShare, Vocabulary, VocabularyToken};

pub(crate) use load::layer_load;
