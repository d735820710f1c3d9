//! What the user knows and the file does not say.

use std::path::Path;

use super::record;
use crate::{ImportReport, ModelConfig, Phase, Place, Result, Stack, WarningKind};

/// How to say the phase of tokens.
pub(super) const PHASE_REMEDY: &str = "--token-phase says which it is";

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
    /// Ids that mark an empty slot, beside those that the format has for it.
    pub empty_ids: Vec<i64>,
    /// Name of the format; detected from the content if it is not given.
    pub format: Option<String>,
    /// Makes every warning of the import an error.
    pub strict: bool,
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

    /// Checks that what the user says is what the file says of itself, where both say something.
    pub(super) fn agree(&self, path: &Path, field: &str, said: Option<usize>, claimed: Option<usize>) -> Result<()> {
        match (said, claimed) {
            (Some(said), Some(claimed)) if said != claimed => {
                let limit = format!("the file says {claimed}");
                Err(record(path, Place::Entry("options".to_owned()), field, &said.to_string(), limit))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the user says no other top-k than that of a file's arrays.
    pub(super) fn must_have_top_k(&self, path: &Path, found: usize) -> Result<()> {
        self.agree(path, "top_k", self.known_top_k(), Some(found))
    }

    /// The phase of tokens where the file does not tell it; prefill if the options do not either.
    pub(super) fn phase(&self) -> Phase {
        self.phase.unwrap_or(Phase::Prefill)
    }

    /// The phase of all tokens of a format that tells none, with a warning if it is assumed.
    pub(super) fn phase_or_assumed(&self, report: &mut ImportReport) -> Phase {
        if self.phase.is_none() {
            let seen = || (None, "the format does not tell phases, all tokens are taken as prefilled".to_owned());
            report.warn(WarningKind::PHASE_ASSUMED, PHASE_REMEDY, seen);
        }
        self.phase()
    }

    pub(super) fn stack(&self) -> Stack {
        self.stack.unwrap_or(Stack::Decoder)
    }
}
