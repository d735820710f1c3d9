//! What the user knows and the file does not say.

use super::ModelConfig;
use crate::{Geometry, Phase, Result, Stack, TraceError};

/// What the user knows about a foreign file that the file itself does not say. Everything is optional: a format that says
/// it in the file checks it, one that does not takes the smallest value that fits the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Experts a layer.
    pub experts: Option<usize>,
    /// Largest number of experts that a token uses in a layer.
    pub top_k: Option<usize>,
    /// The model's name.
    pub model: Option<String>,
    /// The model's configuration: which layers have experts, and how many.
    pub config: Option<ModelConfig>,
    /// The phase of tokens whose phase the file does not say; prefill if it is not given.
    pub phase: Option<Phase>,
    /// The stack of layers whose stack the file does not say; the decoder if it is not given.
    pub stack: Option<Stack>,
    /// Layers of the model to import, where layers are files; all if it is not given.
    pub layers: Option<Vec<usize>>,
    /// Names of columns: `("expert", "id")` reads the column `expert` from the file's column `id`.
    pub columns: Vec<(String, String)>,
}

impl ImportOptions {
    /// Experts a layer as the user says it, by itself or in the configuration.
    pub(super) fn known_experts(&self) -> Option<usize> {
        self.experts.or(self.config.as_ref().map(|config| config.experts))
    }

    /// Experts a token as the user says it, by itself or in the configuration.
    pub(super) fn known_top_k(&self) -> Option<usize> {
        self.top_k.or(self.config.as_ref().map(|config| config.top_k))
    }

    /// The number of experts: what the user says, or one more than the largest id.
    pub(super) fn experts_for(&self, largest_id: Option<usize>) -> Result<usize> {
        let found = largest_id.map_or(1, |id| id.saturating_add(1));
        let (min, max) = (found, Geometry::MAX_EXPERTS);
        match self.known_experts() {
            Some(value) if value < found => Err(TraceError::Geometry { field: "experts", value, min, max }),
            Some(value) => Ok(value),
            None => Ok(found),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.unwrap_or(Phase::Prefill)
    }

    pub(super) fn stack(&self) -> Stack {
        self.stack.unwrap_or(Stack::Decoder)
    }
}
