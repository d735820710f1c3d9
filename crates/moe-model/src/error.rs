//! What can go wrong with a model and its files.

use std::path::PathBuf;

use candle_core::DType;
use moe_trace::{DomainId, LayerId};

/// Result of this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// An error of a checkpoint, a forward pass, generation or tokenization.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A parameter of the model has a value that cannot be run.
    #[error("{field} is {value}, {limit}")]
    Config {
        /// The parameter, by its name in `config.json`.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        limit: String,
    },
    /// A configuration file holds a value that cannot be run.
    #[error("{path}: {field} is {value}, {limit}")]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        limit: String,
    },
    /// A JSON file is not well-formed, or a field has the wrong type.
    #[error("{path}: not the JSON that was expected")]
    Json {
        /// The file.
        path: PathBuf,
        /// The parser's complaint.
        #[source]
        source: serde_json::Error,
    },
    /// Reading a file failed.
    #[error("{path}: cannot read")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A folder has neither one weight file nor an index of several.
    #[error("{path}: neither model.safetensors nor model.safetensors.index.json in this folder")]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// The index names a shard by more than a file name.
    #[error("{path}: shard {shard:?} is no file name, shards must lie beside their index")]
    ShardName {
        /// The index.
        path: PathBuf,
        /// What it says.
        shard: String,
    },
    /// The index names a shard that does not exist.
    #[error("{path}: shard {shard} is missing")]
    MissingShard {
        /// The index.
        path: PathBuf,
        /// File name of the shard.
        shard: String,
    },
    /// A weight file is not well-formed safetensors.
    #[error("{path}: not a readable safetensors file")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The parser's complaint.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A tensor of the architecture is missing.
    #[error("{path}: tensor {name} is missing")]
    MissingTensor {
        /// The file that should have it.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A weight file has a tensor that the model of the configuration lacks.
    #[error("{path}: tensor {name} is not of the model that config.json describes, {reason}")]
    ExtraTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Which field of the configuration leaves it out, if one does.
        reason: String,
    },
    /// A tensor has a shape that the configuration does not imply.
    #[error("{path}: tensor {name} has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor is stored in a type that would need more than a conversion.
    #[error("{path}: tensor {name} has type {dtype:?}, supported are F32, F16 and BF16")]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: safetensors::Dtype,
    },
    /// A model was asked for in a type that it cannot be computed in.
    #[error("dtype is {}, supported are f32, f16 and bf16", dtype.as_str())]
    Dtype {
        /// The type.
        dtype: DType,
    },
    /// A router computed a logit that is not a finite number.
    #[error("{layer}, token {token}: router logit of expert {expert} is {value}, not a finite number")]
    RouterLogit {
        /// MoE layer.
        layer: LayerId,
        /// Row of the token in the forward pass.
        token: usize,
        /// The expert.
        expert: usize,
        /// The logit.
        value: f32,
    },
    /// A token id that the vocabulary does not have.
    #[error("sequence {sequence}: token id {token} at {position} is out of range, the vocabulary has {vocab}")]
    TokenOutOfRange {
        /// The sequence's number in its batch.
        sequence: usize,
        /// Place of the token among the tokens given.
        position: usize,
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A chunk or a prompt without tokens.
    #[error("sequence {sequence}: there are no tokens")]
    NoTokens {
        /// The sequence's number in its batch.
        sequence: usize,
    },
    /// A sequence would become longer than the model's positions.
    #[error("sequence {sequence}: {len} tokens are more than max_position_embeddings {max}")]
    ContextLength {
        /// The sequence's number in its batch.
        sequence: usize,
        /// The length it would have, in tokens.
        len: usize,
        /// The longest length.
        max: usize,
    },
    /// A batch mixes prefill and decode.
    #[error("sequence {sequence} is in phase {found}, the batch is in phase {expected}")]
    MixedPhases {
        /// The first sequence of another phase.
        sequence: usize,
        /// Its phase.
        found: &'static str,
        /// The phase of the batch's first chunk.
        expected: &'static str,
    },
    /// A key-value cache that was made for another model.
    #[error("sequence {sequence}: key-value cache has {found} layers, the model has {expected}")]
    CacheLayers {
        /// The sequence's number in its batch.
        sequence: usize,
        /// Layers of the cache.
        found: usize,
        /// Layers of the model.
        expected: usize,
    },
    /// A sequence has no domain, and the router needs it.
    #[error("sequence {sequence}: the reference router needs its domain")]
    NoDomain {
        /// The sequence's number in its batch.
        sequence: usize,
    },
    /// A domain that the router does not know.
    #[error("sequence {sequence}: domain {} is out of range, the reference router has {domains}", domain.0)]
    DomainOutOfRange {
        /// The sequence's number in its batch.
        sequence: usize,
        /// Its domain.
        domain: DomainId,
        /// Domains of the router.
        domains: usize,
    },
    /// The model predicted a logit that is not a finite number.
    #[error("sequence {sequence}, new token {token}: logit of token id {id} is {value}, not a finite number")]
    Logit {
        /// The sequence's number in its batch.
        sequence: usize,
        /// Number of tokens generated before.
        token: usize,
        /// The token id.
        id: usize,
        /// The logit.
        value: f32,
    },
    /// An option of generation has a value that is not allowed.
    #[error("{field} is {value}, {limit}")]
    Option {
        /// The option.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What is allowed.
        limit: &'static str,
    },
    /// The seeds of a generation do not fit its prompts.
    #[error("there are {seeds} seeds for {prompts} prompts, give one for each or none")]
    Seeds {
        /// Number of seeds.
        seeds: usize,
        /// Number of prompts.
        prompts: usize,
    },
    /// A tokenizer file is not readable.
    #[error("{path}: not a readable tokenizer")]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: tokenizers::Error,
    },
    /// A tokenizer makes ids that the model does not have.
    #[error("{path}: the tokenizer has token id {id}, the model's vocabulary has {vocab}")]
    TokenizerVocab {
        /// The tokenizer's file.
        path: PathBuf,
        /// Its largest token id.
        id: u32,
        /// Size of the model's vocabulary.
        vocab: usize,
    },
    /// Text could not be turned into tokens, or tokens into text.
    #[error("tokenizer failed")]
    Tokenize(#[source] tokenizers::Error),
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The experts failed.
    #[error("experts failed")]
    Experts(#[from] moe_offload::OffloadError),
    /// The shape of the routing is out of bounds.
    #[error("routing geometry is out of bounds")]
    Geometry(#[from] moe_trace::TraceError),
}
