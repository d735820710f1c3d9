//! What the user knows and the file does not say.

use std::path::Path;

use super::rows::columns;
use super::{Importer, record};
use crate::{Geometry, ImportReport, ModelConfig, Phase, Place, Result, Stack, TraceError, WarningKind};

/// How to say the phase of tokens.
pub(super) const PHASE_REMEDY: &str = "--token-phase says which it is";

fn unused_option(path: &Path, option: &'static str, reader: String) -> TraceError {
    TraceError::UnusedOption { path: path.to_owned(), option, reader }
}

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
    /// The most bytes that what is packed in the file, or comes through a pipe, may have; see [`Input::open`](crate::Input::open)
    /// for the default.
    pub max_unpacked: Option<u64>,
    /// Makes every warning of the import an error.
    pub strict: bool,
    /// Names of columns: `("expert", "id")` reads the column `expert` from the file's column `id`.
    pub columns: Vec<(String, String)>,
}

impl ImportOptions {
    /// The options that say something about the file, by their names in the programs.
    fn given(&self) -> impl Iterator<Item = &'static str> {
        let given = [
            ("--from", self.format.is_some()),
            ("--experts", self.experts.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--model", self.model.is_some()),
            ("--config", self.config.is_some()),
            ("--token-phase", self.phase.is_some()),
            ("--stack", self.stack.is_some()),
            ("--model-layers", self.layers.is_some()),
            ("--column", !self.columns.is_empty()),
            ("--empty-id", !self.empty_ids.is_empty()),
        ];
        given.into_iter().filter_map(|(name, is_given)| is_given.then_some(name))
    }

    /// Refuses values that no file can have, and options that an importer does not use.
    pub(super) fn check(&self, path: &Path, importer: &dyn Importer) -> Result<()> {
        let impossible = |option, value: &str, limit: String| {
            Err(TraceError::ImportOption { option, value: value.to_owned(), limit })
        };
        for (option, value) in [("--experts", self.experts), ("--top-k", self.top_k)] {
            if let Some(value) = value.filter(|value| !(1..=Geometry::MAX_EXPERTS).contains(value)) {
                return impossible(option, &value.to_string(), format!("allowed are 1..={}", Geometry::MAX_EXPERTS));
            }
        }
        if let Some((column, name)) = self.columns.iter().find(|(column, _)| !columns().any(|known| known == column)) {
            let limit = format!("columns are {}", columns().collect::<Vec<_>>().join(", "));
            return impossible("--column", &format!("{column}={name}"), limit);
        }
        let unused =
            |option: &&str| *option != "--from" && *option != "--model" && !importer.options().contains(option);
        match self.given().find(unused) {
            None => Ok(()),
            Some(option) => Err(unused_option(path, option, format!("the format {}", importer.name()))),
        }
    }

    /// Refuses options that say what every row of the file says itself.
    pub(super) fn check_untold(&self, path: &Path, lacks_phase: bool, lacks_stack: bool) -> Result<()> {
        for (option, is_void, what) in [
            (
                "--token-phase",
                self.phase.is_some() && !lacks_phase,
                "phase of every token (moescope trace convert --decode-from changes phases)",
            ),
            ("--stack", self.stack.is_some() && !lacks_stack, "stack of every layer"),
        ] {
            if is_void {
                return Err(unused_option(path, option, format!("a file that says the {what}")));
            }
        }
        Ok(())
    }

    /// Refuses all options that say something about the file, for a trace, which says everything itself.
    pub(super) fn check_unused(&self, path: &Path) -> Result<()> {
        self.given().next().map_or(Ok(()), |option| Err(unused_option(path, option, "a trace".to_owned())))
    }

    /// Experts a layer as the user says it, by itself or in the configuration.
    pub(super) fn known_experts(&self) -> Option<usize> {
        self.experts.or(self.config.as_ref().map(|config| config.experts))
    }

    /// Experts a token as the user says it, by itself or in the configuration.
    pub(super) fn known_top_k(&self) -> Option<usize> {
        self.top_k.or(self.config.as_ref().map(|config| config.top_k))
    }

    /// Returns those warnings of an earlier import, which an exported file keeps, that these options do not answer. Warnings
    /// that every import finds in the sequences themselves are left out, because they come again.
    pub(super) fn still_open(&self, kept: &ImportReport) -> ImportReport {
        let answered = [
            (WarningKind::EXPERTS_INFERRED, self.known_experts().is_some()),
            (WarningKind::TOP_K_INFERRED, self.known_top_k().is_some()),
            (WarningKind::NO_DECODED_TOKENS, true),
            (WarningKind::WARM_UP_SUSPECTED, true),
        ];
        let answered = answered.into_iter().filter_map(|(kind, is_answered)| is_answered.then_some(kind));
        kept.without(&answered.collect::<Vec<_>>())
    }

    /// Returns the number of experts that a file claims, unless an earlier import inferred it and the user says one.
    pub(super) fn claimed_experts(&self, claimed: Option<usize>, kept: &ImportReport) -> Option<usize> {
        claimed.filter(|_| self.known_experts().is_none() || !kept.has(&WarningKind::EXPERTS_INFERRED))
    }

    /// Returns the top-k that a file claims, unless an earlier import inferred it and the user says one.
    pub(super) fn claimed_top_k(&self, claimed: Option<usize>, kept: &ImportReport) -> Option<usize> {
        claimed.filter(|_| self.known_top_k().is_none() || !kept.has(&WarningKind::TOP_K_INFERRED))
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
