//! An import that is under way.

use super::id_ranges::LayerRanges;
use super::input::Input;
use super::{ImportOptions, Importer, in_file};
use crate::{
    EMPTY_SLOT, Geometry, ImportReport, LayerId, Phase, Result, SequenceBuf, SequenceStream, TraceError, WarningKind,
};

/// A file of another recorder, read sequence by sequence, with the [report](SequenceStream::report) of what was inferred.
///
/// Every error names the file. With [`ImportOptions::strict`] the first warning is an error.
pub struct Import {
    importer: &'static dyn Importer,
    input: Input,
    inner: Box<dyn SequenceStream>,
    options: ImportOptions,
    watch: Watch,
    report: ImportReport,
}

impl Import {
    pub(super) fn new(importer: &'static dyn Importer, input: Input, options: &ImportOptions) -> Result<Import> {
        options.check(input.path(), importer)?;
        let inner = match importer.open(&input, options) {
            Err(TraceError::Geometry { field: "layers", value: 0, .. }) => return Err(nothing(importer, &input)),
            opened => opened.map_err(|error| in_file(input.path(), error))?,
        };
        let watch = Watch::new(inner.geometry());
        let report = ImportReport::default();
        let mut import = Import { importer, input, inner, options: options.clone(), watch, report };
        import.update(false)?;
        Ok(import)
    }

    /// The importer that reads the file.
    pub fn importer(&self) -> &'static dyn Importer {
        self.importer
    }

    /// Begins anew, at the first sequence.
    ///
    /// # Errors
    /// As [`open_import`](crate::open_import).
    pub fn again(self) -> Result<Import> {
        Import::new(self.importer, self.input, &self.options)
    }

    fn update(&mut self, ended: bool) -> Result<()> {
        self.report = self.inner.report().clone();
        if ended {
            self.watch.finish(self.inner.geometry(), &mut self.report);
        }
        self.report.name_file(self.input.path());
        if self.options.strict { self.report.refuse_warnings(self.input.path()) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Import {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Import").field("importer", &self.importer.name()).field("input", &self.input).finish()
    }
}

impl SequenceStream for Import {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    fn domains(&self) -> &[String] {
        self.inner.domains()
    }

    fn model(&self) -> Option<&str> {
        self.inner.model()
    }

    fn report(&self) -> &ImportReport {
        &self.report
    }

    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>> {
        let next = self.inner.next_sequence().map_err(|error| in_file(self.input.path(), error))?;
        match &next {
            Some(sequence) => self.watch.sequence(sequence),
            None if self.watch.sequences == 0 => return Err(nothing(self.importer, &self.input)),
            None => {}
        }
        if next.is_none() || self.options.strict {
            self.update(next.is_none())?;
        }
        Ok(next)
    }
}

/// The error of a file without a token.
fn nothing(importer: &dyn Importer, input: &Input) -> TraceError {
    match input.len() {
        Ok(bytes) => TraceError::NothingToImport { path: input.path().to_owned(), format: importer.name(), bytes },
        Err(error) => error,
    }
}

/// What shows only when all sequences have been seen, whatever the format.
struct Watch {
    row: usize,
    slots: usize,
    sequences: usize,
    tokens: usize,
    decoded: bool,
    /// Layers without an id other than 0 so far.
    idle: Vec<LayerId>,
    ranges: LayerRanges,
    /// Sequences whose tokens all have the same experts: the first, and their number.
    uniform: Option<(usize, usize)>,
}

impl Watch {
    /// Fewer tokens do not show that a layer is never routed.
    const FEWEST_TOKENS: usize = 8;
    /// Fewer tokens may have the same experts by chance.
    const FEWEST_UNIFORM: usize = 16;

    fn new(geometry: &Geometry) -> Watch {
        let slots = geometry.top_k();
        let idle = geometry.layer_ids().collect();
        let ranges = LayerRanges::new(geometry.layers());
        let row = geometry.layers() * slots;
        Watch { row, slots, sequences: 0, tokens: 0, decoded: false, idle, ranges, uniform: None }
    }

    fn sequence(&mut self, sequence: &SequenceBuf) {
        let mut rows = sequence.experts.chunks_exact(self.row);
        let first = rows.next().filter(|row| row.iter().any(|&id| id != EMPTY_SLOT));
        if sequence.phases.len() >= Self::FEWEST_UNIFORM && first.is_some_and(|first| rows.all(|row| row == first)) {
            let (at, count) = self.uniform.unwrap_or((self.sequences, 0));
            self.uniform = Some((at, count + 1));
        }
        self.sequences += 1;
        self.tokens += sequence.phases.len();
        self.decoded |= sequence.phases.contains(&Phase::Decode.code());
        for row in sequence.experts.chunks_exact(self.row) {
            self.ranges.token(row, self.slots);
            if self.idle.is_empty() {
                continue;
            }
            let is_idle = |layer: &LayerId| {
                let cell = &row[layer.index() * self.slots..][..self.slots];
                cell.iter().all(|&id| id == 0 || id == EMPTY_SLOT)
            };
            self.idle.retain(is_idle);
        }
    }

    fn finish(&self, geometry: &Geometry, report: &mut ImportReport) {
        if !self.decoded && self.tokens > 0 && !report.has(&WarningKind::PHASE_ASSUMED) {
            let seen = || (None, "no token is decoded, and decoding is what caches are judged by".to_owned());
            report.warn(WarningKind::NO_DECODED_TOKENS, "--token-phase decode if these tokens were decoded", seen);
        }
        if let Some((first, count)) = self.uniform.filter(|_| geometry.experts() > geometry.top_k()) {
            let seen = format!(
                "all tokens of {count} sequences, the first is sequence {first}, have the same experts, as the made-up tokens \
                 of a warm-up have"
            );
            let remedy = "moescope trace slice --sequences leaves sequences out";
            report.warn(WarningKind::WARM_UP_SUSPECTED, remedy, || (None, seen));
        }
        if self.tokens >= Self::FEWEST_TOKENS
            && let Some(seen) = self.ranges.numbered_over_all_layers()
        {
            let remedy = "subtract the first id of each layer, a multiple of the experts of a layer";
            report.warn(WarningKind::LAYOUT_SUSPECTED, remedy, || (None, seen));
        }
        if !self.idle.is_empty() && self.tokens >= Self::FEWEST_TOKENS && geometry.experts() > 1 {
            let name = |layer: &LayerId| geometry.moe_layers()[layer.index()].model_layer.to_string();
            let layers = self.idle.iter().take(8).map(name).collect::<Vec<_>>().join(", ");
            let rest = self.idle.len().saturating_sub(8);
            let more = if rest == 0 { String::new() } else { format!(" and {rest} more") };
            let seen = format!("no id but 0 in layers {layers}{more} of the model: dense layers have no experts");
            report.warn(WarningKind::IDLE_LAYERS, "--config says which layers have experts", || (None, seen));
        }
    }
}
