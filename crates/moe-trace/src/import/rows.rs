//! Tables with named columns: what a row can say, and how rows become sequences.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::ids::IdsSeen;
use super::options::PHASE_REMEDY;
use super::token_table::{Refusal, TokenTable};
use super::{ImportOptions, Input};
use crate::{
    DomainId, Geometry, ImportReport, MoeLayer, Phase, Place, Result, SequenceBuf, SequenceStream, Stack, TraceError,
    WarningKind,
};

/// One row: an expert of a token in a layer, or all experts of a token in a layer.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) sequence: String,
    pub(super) token: i64,
    pub(super) layer: u32,
    pub(super) encoder: Option<bool>,
    /// Slot of the first expert; the first free one if it is not given.
    pub(super) slot: Option<usize>,
    /// Experts in rank order, [`EMPTY_SLOT`](crate::EMPTY_SLOT) for an empty slot.
    pub(super) experts: Vec<u16>,
    /// As many as experts, or none.
    pub(super) weights: Vec<f32>,
    pub(super) phase: Option<Phase>,
    pub(super) domain: Option<String>,
    pub(super) token_id: Option<u32>,
    pub(super) prediction: Option<u32>,
}

/// The names by which a column is known, the first is the one that exporters write.
const COLUMNS: [&[&str]; 12] = [
    &["sequence", "seq", "seq_id", "sequence_id", "request_id", "req_id", "prompt_id"],
    &["token", "token_idx", "token_index", "pos", "position", "step"],
    &["layer", "layer_id", "layer_idx"],
    &["stack"],
    &["slot", "rank"],
    &["expert", "expert_id"],
    &["experts", "expert_ids", "topk_ids", "topk_experts"],
    &["weight", "gate", "prob", "score"],
    &["weights", "topk_weights", "gates"],
    &["domain", "dataset", "category"],
    &["token_id", "input_id"],
    &["prediction", "predicted_id"],
];

/// The names under which `column` may stand in a file: what the user says, or those known.
pub(super) fn names(column: &str, options: &ImportOptions) -> Vec<String> {
    if let Some((_, name)) = options.columns.iter().find(|(canonical, _)| canonical == column) {
        return vec![name.clone()];
    }
    let known = COLUMNS.iter().find(|names| names[0] == column).copied();
    known.map_or_else(|| vec![column.to_owned()], |names| names.iter().map(|&name| name.to_owned()).collect())
}

/// Whether these columns are enough for a table of routed experts.
pub(super) fn are_enough<'a>(columns: impl Iterator<Item = &'a str>) -> bool {
    let columns: Vec<&str> = columns.collect();
    let has =
        |column: &str| names(column, &ImportOptions::default()).iter().any(|name| columns.contains(&name.as_str()));
    has("token") && has("layer") && (has("expert") || has("experts") || columns.contains(&"expert_0"))
}

/// Phases by the names and codes that files give them.
pub(super) fn phase(text: &str) -> Option<Phase> {
    match text {
        "0" | "prefill" | "prompt" => Some(Phase::Prefill),
        "1" | "decode" | "generate" => Some(Phase::Decode),
        _ => None,
    }
}

/// What a file says about all rows.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pub(super) model: Option<String>,
    pub(super) experts: Option<usize>,
    pub(super) top_k: Option<usize>,
}

/// Rows of a file in their order.
pub(super) trait RowSource {
    /// Replaces `row` by the next one; tells whether there was one.
    fn next(&mut self, row: &mut Row) -> Result<bool>;

    /// What the file has said so far about all rows.
    fn claims(&self) -> &Claims;

    /// Where the row that was read last stands.
    fn place(&self) -> Place;

    /// An error at the row that was read last.
    fn error(&self, field: &str, value: &str, limit: &str) -> TraceError;
}

/// Opens rows as sequences: reads them once for the geometry and once for the sequences.
///
/// The rows of a sequence must follow each other. Layers are ordered encoder first, then by number.
pub(super) fn open<S: RowSource + 'static>(
    input: &Input,
    options: &ImportOptions,
    source: impl Fn() -> Result<S>,
) -> Result<Box<dyn SequenceStream>> {
    let mut scan = source()?;
    let (mut layers, mut seen, mut report) = (BTreeMap::new(), IdsSeen::default(), ImportReport::default());
    let (mut domains, mut known): (Vec<String>, HashSet<String>) = (Vec::new(), HashSet::new());
    let mut row = Row::default();
    // Rows of one expert without a slot: how many of the same cell follow each other.
    let (mut cell, mut in_cell, mut start) = (None, 0, None);
    while scan.next(&mut row)? {
        let this = Some((row.sequence.clone(), row.token, layer_key(&row, options)));
        if this != cell {
            if let Some(place) = start.replace(scan.place()) {
                seen.experts_of_a_token(in_cell, || place);
            }
            (cell, in_cell) = (this, 0);
        }
        layers.insert(layer_key(&row, options), 0);
        if layers.len() > Geometry::MAX_LAYERS {
            return Err(scan.error(
                "layer",
                &row.layer.to_string(),
                &format!("at most {} layers", Geometry::MAX_LAYERS),
            ));
        }
        for &id in row.experts.iter().filter(|&&id| id != crate::EMPTY_SLOT) {
            seen.id(usize::from(id), || scan.place());
        }
        let used = row.slot.unwrap_or(if row.experts.len() > 1 { 0 } else { in_cell });
        in_cell = in_cell.max(used.saturating_add(row.experts.len()));
        if row.phase.is_none() && options.phase.is_none() {
            report.warn(WarningKind::PHASE_ASSUMED, PHASE_REMEDY, || {
                (Some(scan.place()), "the phase is missing, the token is taken as prefilled".to_owned())
            });
        }
        if let Some(domain) = row.domain.take_if(|domain| !known.contains(domain)) {
            if domains.len() > usize::from(u16::MAX) {
                return Err(scan.error("domain", &domain, "at most 65536 domains"));
            }
            known.insert(domain.clone());
            domains.push(domain);
        }
    }
    if let Some(place) = start {
        seen.experts_of_a_token(in_cell, || place);
    }
    layers.values_mut().enumerate().for_each(|(ordinal, value)| *value = ordinal);
    let claims = scan.claims();
    let moe_layers = layers.keys().map(|&(is_decoder, model_layer)| {
        let stack = if is_decoder { Stack::Decoder } else { Stack::Encoder };
        MoeLayer { model_layer, stack }
    });
    let experts = seen.experts(input.path(), options, claims.experts, &mut report)?;
    let top_k = seen.top_k(input.path(), options, claims.top_k, &mut report)?;
    let geometry = Geometry::new(moe_layers.collect(), experts, top_k)?;
    let domain_of = (0..).map(DomainId).zip(&domains).map(|(id, name)| (name.clone(), id)).collect();
    Ok(Box::new(Rows {
        source: source()?,
        model: options.model.clone().or(claims.model.clone()),
        report,
        tokens: TokenTable::new(&geometry),
        geometry,
        layers,
        domains,
        domain_of,
        options: options.clone(),
        row: Row::default(),
        sequence: None,
        domain: None,
        finished: HashSet::new(),
        ended: false,
    }))
}

/// Whether the layer is the decoder's, and its number: layers sort in the order of execution.
fn layer_key(row: &Row, options: &ImportOptions) -> (bool, u32) {
    let encoder = row.encoder.unwrap_or(options.stack() == Stack::Encoder);
    (!encoder, row.layer)
}

struct Rows<S> {
    source: S,
    geometry: Geometry,
    model: Option<String>,
    report: ImportReport,
    layers: BTreeMap<(bool, u32), usize>,
    domains: Vec<String>,
    domain_of: HashMap<String, DomainId>,
    options: ImportOptions,
    row: Row,
    tokens: TokenTable,
    /// The sequence whose rows are being read.
    sequence: Option<String>,
    domain: Option<DomainId>,
    finished: HashSet<String>,
    ended: bool,
}

impl<S: RowSource> Rows<S> {
    /// Takes the row that was read last; if it begins another sequence, returns the one before it.
    fn take(&mut self) -> Result<Option<SequenceBuf>> {
        let mut finished = None;
        if self.sequence.as_deref() != Some(&self.row.sequence) {
            if let Some(last) = self.sequence.replace(self.row.sequence.clone()) {
                finished = Some(self.finish());
                self.finished.insert(last);
            }
            if self.finished.contains(&self.row.sequence) {
                let limit = "its rows must follow each other: sort the file by sequence";
                return Err(self.source.error("sequence", &self.row.sequence, limit));
            }
            self.domain = self.row.domain.as_ref().and_then(|domain| self.domain_of.get(domain)).copied();
        }
        let row = &self.row;
        let domain = row.domain.as_ref().and_then(|domain| self.domain_of.get(domain)).copied();
        if domain != self.domain {
            let value = row.domain.as_deref().unwrap_or("missing");
            return Err(self.source.error("domain", value, "expected that of the sequence's first row"));
        }
        let source = &self.source;
        let Some(&layer) = self.layers.get(&layer_key(row, &self.options)) else {
            return Err(source.error("layer", &row.layer.to_string(), "the file was changed while it was read"));
        };
        let refused = |refusal| match refusal {
            Refusal::Taken => {
                source.error("token", &row.token.to_string(), "this slot of the token and layer came before")
            }
            Refusal::Phase => source.error("phase", "another", "expected that of the token's first row"),
            Refusal::Sparse => {
                source.error("token", &row.token.to_string(), "most cells of the tokens before are missing")
            }
        };
        let at = self.tokens.row(row.token, row.phase.unwrap_or(self.options.phase())).map_err(refused)?;
        self.tokens.set_ids(at, row.token_id, row.prediction);
        for (index, &expert) in row.experts.iter().enumerate() {
            let slot = match row.slot {
                Some(slot) => slot.checked_add(index).filter(|&slot| slot < self.geometry.top_k()),
                None if row.experts.len() > 1 => Some(index),
                None => self.tokens.free_slot(at, layer),
            };
            let Some(slot) = slot else {
                let limit = format!("a token uses at most {} experts in a layer; give top_k", self.geometry.top_k());
                return Err(source.error("expert", &expert.to_string(), &limit));
            };
            if expert != crate::EMPTY_SLOT {
                self.tokens.put(at, layer, slot, expert, row.weights.get(index).copied()).map_err(refused)?;
            }
        }
        Ok(finished)
    }

    fn finish(&mut self) -> SequenceBuf {
        let sequence = std::mem::replace(&mut self.tokens, TokenTable::new(&self.geometry)).finish();
        SequenceBuf { domain: self.domain, ..sequence }
    }
}

impl<S: RowSource> SequenceStream for Rows<S> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn domains(&self) -> &[String] {
        &self.domains
    }

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn report(&self) -> &ImportReport {
        &self.report
    }

    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>> {
        while !self.ended && self.source.next(&mut self.row)? {
            if let Some(sequence) = self.take()? {
                return Ok(Some(sequence));
            }
        }
        if std::mem::replace(&mut self.ended, true) || self.sequence.is_none() {
            return Ok(None);
        }
        Ok(Some(self.finish()))
    }
}
