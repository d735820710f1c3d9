//! The shape of a model, from its `config.json`.

mod families;
mod fields;
mod file;
mod layers;
mod sizes;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use sizes::ModelSizes;

use crate::{Geometry, Result, Stack};
use fields::Fields;

/// The layers of one stack of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackLayers {
    /// Number of layers, dense ones counted.
    pub layers: usize,
    /// Layers with experts, ascending.
    pub moe_layers: Vec<usize>,
}

/// The experts of a model, as its `config.json` describes them.
///
/// Which key means what depends on the family, that is on `model_type`. The reader has the keys and the defaults of
/// every family of transformers 5.24 that sends tokens to experts, and reads the language model of a model of several
/// modalities. A family that it does not have is an error, and so are two keys that contradict each other.
///
/// ```
/// use std::path::Path;
/// use moe_trace::ModelConfig;
///
/// let json = br#"{"model_type": "lfm2_moe", "num_hidden_layers": 4, "num_dense_layers": 2, "num_experts": 8,
///     "num_experts_per_tok": 2}"#;
/// let config = ModelConfig::parse(Path::new("config.json"), json)?;
/// assert_eq!((config.experts, config.top_k), (8, 2));
/// assert_eq!((config.decoder.layers, config.decoder.moe_layers), (4, vec![2, 3]));
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// The family, as `model_type` of the language model has it.
    pub family: String,
    /// Experts per layer.
    pub experts: usize,
    /// Experts per token and layer.
    pub top_k: usize,
    /// Layers of the decoder, or of the only stack.
    pub decoder: StackLayers,
    /// Layers of the encoder, if the model has an encoder beside its decoder.
    pub encoder: Option<StackLayers>,
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`TraceError::Io`](crate::TraceError::Io); [`TraceError::Malformed`](crate::TraceError::Malformed) for a file
    /// that is not JSON; [`TraceError::Record`](crate::TraceError::Record) for an unknown family, a model without
    /// experts, impossible numbers, and keys that contradict each other.
    pub fn read(path: impl AsRef<Path>) -> Result<ModelConfig> {
        let path = path.as_ref();
        ModelConfig::parse(path, &file::read(path)?)
    }

    /// Parses the bytes of a `config.json`; errors name `path`.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(path: &Path, json: &[u8]) -> Result<ModelConfig> {
        let root = file::json(path, json)?;
        ModelConfig::of(&Fields::of_language_model(path, &root)?)
    }

    fn of(fields: &Fields<'_>) -> Result<ModelConfig> {
        let family = fields.family();
        let stacks = layers::stacks(fields)?;
        let experts = fields.one_of(families::EXPERTS, family.experts, 1, Geometry::MAX_EXPERTS)?;
        let top_k = fields.one_of(families::TOP_K, family.top_k, 1, experts)?;
        Ok(ModelConfig {
            family: fields.name().to_owned(),
            experts,
            top_k,
            decoder: stacks.decoder,
            encoder: stacks.encoder,
        })
    }

    /// Returns the layers of a stack, if the model has that stack.
    pub fn stack(&self, stack: Stack) -> Option<&StackLayers> {
        match stack {
            Stack::Decoder => Some(&self.decoder),
            Stack::Encoder => self.encoder.as_ref(),
        }
    }
}
