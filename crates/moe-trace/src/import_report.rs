//! What an import inferred or found odd.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Place, Result, RoutingSource, TraceError};

/// A kind of warning, by a name that stays the same over versions.
///
/// A trace file of a later version may have kinds that are not listed here; they are kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WarningKind(Cow<'static, str>);

impl WarningKind {
    /// The number of experts is one more than the largest id.
    pub const EXPERTS_INFERRED: WarningKind = WarningKind::new("experts-inferred");
    /// Top-k is the largest number of experts that a token uses, and other tokens use fewer.
    pub const TOP_K_INFERRED: WarningKind = WarningKind::new("top-k-inferred");
    /// The file does not tell the phase of (some) tokens.
    pub const PHASE_ASSUMED: WarningKind = WarningKind::new("phase-assumed");
    /// No token is decoded.
    pub const NO_DECODED_TOKENS: WarningKind = WarningKind::new("no-decoded-tokens");
    /// Layers have no id but 0, as dense layers do in arrays that have all layers.
    pub const IDLE_LAYERS: WarningKind = WarningKind::new("idle-layers");
    /// One id stands alone far above all others, as marks of empty slots in unsigned integers do.
    pub const EMPTY_ID_SUSPECTED: WarningKind = WarningKind::new("empty-id-suspected");

    /// Passes of another model, or passes that were not routed, are left out.
    pub const PASSES_LEFT_OUT: WarningKind = WarningKind::new("passes-left-out");
    /// Rows that are no token of a sequence, as the file says, are left out.
    pub const ROWS_LEFT_OUT: WarningKind = WarningKind::new("rows-left-out");
    /// Positions come again in later passes; the last pass of a position counts.
    pub const POSITIONS_AGAIN: WarningKind = WarningKind::new("positions-again");
    /// Tokens could belong to several requests.
    pub const REQUESTS_UNCLEAR: WarningKind = WarningKind::new("requests-unclear");
    /// Numbers between the first and the last token of a sequence are no token's.
    pub const TOKENS_MISSING: WarningKind = WarningKind::new("tokens-missing");
    /// A token has rows, but none in some layer.
    pub const CELLS_MISSING: WarningKind = WarningKind::new("cells-missing");
    /// A token has fewer experts in some layer than top-k, and nothing says that slots are empty.
    pub const SLOTS_MISSING: WarningKind = WarningKind::new("slots-missing");
    /// The first tokens of a sequence are missing.
    pub const START_MISSING: WarningKind = WarningKind::new("start-missing");
    /// Several processes recorded the same experts; they count once.
    pub const RANK_COPIES: WarningKind = WarningKind::new("rank-copies");
    /// Several processes recorded parts of a token's experts; they were put together.
    pub const RANKS_JOINED: WarningKind = WarningKind::new("ranks-joined");
    /// Numbers of tokens count within a forward pass.
    pub const TOKENS_IN_PASS: WarningKind = WarningKind::new("tokens-in-pass");
    /// A column that can change the meaning of rows is not used.
    pub const COLUMN_NOT_USED: WarningKind = WarningKind::new("column-not-used");
    /// Layers of the file count the layers with experts; they have the numbers of the configuration.
    pub const LAYERS_RENUMBERED: WarningKind = WarningKind::new("layers-renumbered");
    /// Layers with experts, by the configuration, are not in the file.
    pub const LAYERS_MISSING: WarningKind = WarningKind::new("layers-missing");
    /// Tokens were not routed in a layer, as far as the file shows.
    pub const UNROUTED_TOKENS: WarningKind = WarningKind::new("unrouted-tokens");
    /// The run that was recorded did not compute some experts that the router chose.
    pub const EXPERTS_DROPPED: WarningKind = WarningKind::new("experts-dropped");
    /// The trace is a copy of a capture that was not complete.
    pub const CAPTURE_INCOMPLETE: WarningKind = WarningKind::new("capture-incomplete");
    /// Arrays or ids are laid out as no model has them.
    pub const LAYOUT_SUSPECTED: WarningKind = WarningKind::new("layout-suspected");
    /// Tokens look made up, as those of a warm-up.
    pub const WARM_UP_SUSPECTED: WarningKind = WarningKind::new("warm-up-suspected");

    /// A kind of this name: lower case, words joined by hyphens.
    pub const fn new(name: &'static str) -> WarningKind {
        WarningKind(Cow::Borrowed(name))
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WarningKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One kind of warning about an imported file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// What kind it is.
    pub kind: WarningKind,
    /// Name of the file, without its folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line, byte or entry where it was seen first; the whole file if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What was seen and what it was taken for.
    pub seen: String,
    /// How to say otherwise: options of the programs, which have the names of the fields of
    /// `ImportOptions`.
    pub remedy: String,
    /// How often it was seen.
    pub count: u64,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = [self.file.as_deref(), self.place.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(", ");
        if !place.is_empty() {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}", self.seen)?;
        if self.count > 1 {
            write!(f, " ({} times)", self.count)?;
        }
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// The warnings of an import, one a kind: the first of its kind, and how many there were.
///
/// ```
/// use moe_trace::{ImportReport, Place, WarningKind};
/// let mut report = ImportReport::default();
/// for line in [7, 9] {
///     let seen = || (Some(Place::Line(line)), "id 255 is taken for an expert".to_owned());
///     report.warn(WarningKind::EMPTY_ID_SUSPECTED, "--empty-id 255", seen);
/// }
/// assert_eq!(report.to_string(), "line 7: id 255 is taken for an expert (2 times); --empty-id 255\n");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImportReport {
    warnings: Vec<Warning>,
}

impl ImportReport {
    /// A report without warnings.
    pub const fn none() -> &'static ImportReport {
        const NONE: &ImportReport = &ImportReport { warnings: Vec::new() };
        NONE
    }

    /// Returns what a copy of a source must keep: its warnings, and its notices as a warning, because a copy of a capture that
    /// is not complete looks like a whole one.
    pub fn of_copy(source: &dyn RoutingSource) -> ImportReport {
        let mut report = source.import_report().clone();
        for notice in source.notices() {
            report.warn(WarningKind::CAPTURE_INCOMPLETE, "finish the capture and copy it again", || {
                (None, format!("the capture that was copied: {notice}"))
            });
        }
        report
    }

    /// Adds a warning; `remedy` says how to say otherwise, and `seen` where something was seen and what. Of a kind that
    /// is there already, only the count grows and `seen` is not called.
    pub fn warn(&mut self, kind: WarningKind, remedy: &str, seen: impl FnOnce() -> (Option<Place>, String)) {
        if let Some(known) = self.warnings.iter_mut().find(|warning| warning.kind == kind) {
            known.count = known.count.saturating_add(1);
            return;
        }
        let (place, seen) = seen();
        let place = place.map(|place| place.to_string());
        self.warnings.push(Warning { kind, file: None, place, seen, remedy: remedy.to_owned(), count: 1 });
    }

    /// Adds the warnings of another report; where both have a kind, this one's place and text stay.
    pub fn merge(&mut self, other: &ImportReport) {
        for warning in &other.warnings {
            match self.warnings.iter_mut().find(|known| known.kind == warning.kind) {
                Some(known) => known.count = known.count.saturating_add(warning.count),
                None => self.warnings.push(warning.clone()),
            }
        }
    }

    /// The report without some kinds of warnings, of which the user has said otherwise.
    pub fn without(&self, kinds: &[WarningKind]) -> ImportReport {
        let kept = self.warnings.iter().filter(|warning| !kinds.contains(&warning.kind));
        ImportReport { warnings: kept.cloned().collect() }
    }

    /// Whether there is no warning.
    pub fn is_empty(&self) -> bool {
        self.warnings.is_empty()
    }

    /// The warnings, in the order in which their kinds were seen first.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Whether there is a warning of a kind.
    pub fn has(&self, kind: &WarningKind) -> bool {
        self.warnings.iter().any(|warning| warning.kind == *kind)
    }

    /// Names the file in every warning that has no name yet.
    #[cfg(any(test, feature = "import"))]
    pub(crate) fn name_file(&mut self, path: &Path) {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        for warning in self.warnings.iter_mut().filter(|warning| warning.file.is_none()) {
            warning.file = Some(name.clone().into_owned());
        }
    }

    /// Turns warnings into an error.
    ///
    /// # Errors
    /// [`TraceError::Warned`] if there is a warning.
    pub fn refuse_warnings(&self, path: impl AsRef<Path>) -> Result<()> {
        match self.warnings.as_slice() {
            [] => Ok(()),
            [first, others @ ..] => Err(TraceError::Warned {
                path: path.as_ref().to_owned(),
                warning: Box::new(first.clone()),
                others: others.len(),
            }),
        }
    }
}

/// One line a warning.
impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.warnings.iter().try_for_each(|warning| writeln!(f, "{warning}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_kind_is_kept_and_the_others_are_counted() {
        let mut report = ImportReport::default();
        assert!(report.refuse_warnings("f").is_ok());
        for line in 1..=3 {
            let seen = || (Some(Place::Line(line)), format!("row {line}"));
            report.warn(WarningKind::PHASE_ASSUMED, "--token-phase", seen);
        }
        let mut other = ImportReport::default();
        other.warn(WarningKind::PHASE_ASSUMED, "", || (None, "never shown".to_owned()));
        other.warn(WarningKind::IDLE_LAYERS, "--config", || (None, "layer 0".to_owned()));
        report.merge(&other);
        report.name_file(Path::new("folder/f.csv"));
        let lines = "f.csv, line 1: row 1 (4 times); --token-phase\nf.csv: layer 0; --config\n";
        assert_eq!(report.to_string(), lines);
        let error = report.refuse_warnings("f").unwrap_err().to_string();
        assert_eq!(error, "f.csv, line 1: row 1 (4 times); --token-phase (1 more); warnings are errors here");
    }

    #[test]
    fn kinds_that_are_not_known_are_kept() {
        let json = r#"[{"kind":"of-a-later-version","seen":"x","remedy":"y","count":2}]"#;
        let report: ImportReport = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&report).unwrap(), json);
    }
}
