//! Files of SGLang's expert distribution recorder in per-token mode.

use super::ids::IdsSeen;
use super::pickle::Value;
use super::torch_file::{TensorRef, TorchFile};
use super::{ImportOptions, Importer, Input, Sample};
use crate::{EMPTY_SLOT, Geometry, ImportReport, MoeLayer, Phase, Place, Result, SequenceBuf, SequenceStream};

/// `{"records": [{"forward_pass_id", "input_ids", "positions", "extend_seq_lens", "forward_mode", "topk_ids_of_layer"}],
/// "last_physical_to_logical_map"}`, saved by PyTorch and read without executing it.
///
/// `topk_ids_of_layer` is `[layers, tokens, 8]` with -1 for unused slots; its ids are places of experts, which the map,
/// `[layers, places]`, turns into experts. Layers without any id are dense. The file does not name requests, so sequences
/// are put together by position: a prefilled part that begins at 0 begins a sequence; another part or a decoded token
/// continues the oldest sequence that has come as far as its position and is not continued by this pass already, and
/// begins a sequence if there is none. A sequence that has decoded and is missing from a decode pass has ended.
pub(super) struct SgLang;

impl Importer for SgLang {
    fn name(&self) -> &'static str {
        "sglang"
    }

    fn description(&self) -> &'static str {
        "SGLang expert distribution recorder, per-token mode: torch.save of records"
    }

    fn detects(&self, sample: &Sample) -> bool {
        sample.is_zip() && sample.names().iter().any(|name| name.ends_with("/data.pkl"))
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let path = input.path();
        let mut file = TorchFile::open(input)?;
        let map = match file.pickle().get(file.pickle().root(), "last_physical_to_logical_map") {
            Some(map) => file.tensor("last_physical_to_logical_map", map)?,
            None => return Err(file.error("root", "last_physical_to_logical_map", "missing", "expected a tensor")),
        };
        let map = file.read("last_physical_to_logical_map", &map)?;
        let [layers, places] = map.dimensions::<2>(path, "[layers, places]")?;
        let mut records = read_records(&file)?;
        records.sort_by_key(|record| record.pass);

        let mut open: Vec<Open> = Vec::new();
        let (mut used, mut top_k) = (vec![false; layers], 0);
        let mut width = None;
        let mut seen = IdsSeen::default();
        for id in (0..map.len()).filter_map(|index| usize::try_from(map.get(index)).ok()) {
            seen.id(id, || Place::Entry("last_physical_to_logical_map".to_owned()));
        }
        let mut report = ImportReport::default();
        let experts = seen.experts(path, options, None, &mut report)?;
        // Records of a pickle can share a tensor, so that a small file could stand for any number of tokens.
        let mut budget = file.bytes().saturating_mul(EXPANSION);
        for record in &records {
            let name = format!("record of pass {}", record.pass);
            let ids = file.read(&name, &record.ids)?;
            let shape = ids.dimensions::<3>(path, "[layers, tokens, k]")?;
            budget = budget.checked_sub(ids.len() as u64).ok_or_else(|| {
                let limit = format!("at most {EXPANSION} ids for each byte of the file");
                ids.error(path, "ids", "more", &limit)
            })?;
            let k = *width.get_or_insert(shape[2]);
            if shape != [layers, record.positions.len(), k] {
                let limit = format!("expected [{layers}, {}, {k}]", record.positions.len());
                return Err(ids.error(path, "topk_ids_of_layer", &format!("of shape {shape:?}"), &limit));
            }
            let expert = |layer: usize, place: i64| -> Result<u16> {
                if place < 0 {
                    return Ok(EMPTY_SLOT);
                }
                let place = usize::try_from(place).ok().filter(|&place| place < places).ok_or_else(|| {
                    ids.error(
                        path,
                        &format!("id in layer {layer}"),
                        &place.to_string(),
                        &format!("there are {places} places"),
                    )
                })?;
                let expert = map.get(layer * places + place);
                u16::try_from(expert).ok().filter(|&expert| usize::from(expert) < experts).ok_or_else(|| {
                    map.error(
                        path,
                        &format!("expert at place {place} of layer {layer}"),
                        &expert.to_string(),
                        "expected an expert",
                    )
                })
            };
            let assigned = assign(&mut open, record);
            for (token, sequence) in assigned.into_iter().enumerate() {
                let mut row = Vec::with_capacity(layers * k);
                for (layer, used) in used.iter_mut().enumerate() {
                    for slot in 0..k {
                        let id = expert(layer, ids.get((layer * shape[1] + token) * k + slot))?;
                        row.push(id);
                        if id != EMPTY_SLOT {
                            *used = true;
                            top_k = top_k.max(slot + 1);
                        }
                    }
                }
                let phase = if record.decodes { Phase::Decode } else { Phase::Prefill };
                open[sequence].tokens.push(Token { row, phase, id: record.input_ids.get(token).copied().flatten() });
            }
        }
        let top_k = options.known_top_k().unwrap_or(top_k).max(top_k);
        let used: Vec<usize> = (0..layers).filter(|&layer| used[layer]).collect();
        let moe_layer =
            |&layer: &usize| MoeLayer { model_layer: u32::try_from(layer).unwrap_or(u32::MAX), stack: options.stack() };
        let geometry = Geometry::new(used.iter().map(moe_layer).collect(), experts, top_k)?;
        let (model, width) = (options.model.clone(), width.unwrap_or(0));
        Ok(Box::new(Sequences { geometry, layers: used, width, model, report, open: open.into_iter() }))
    }
}

/// One forward pass.
struct Pass {
    pass: i64,
    decodes: bool,
    positions: Vec<i64>,
    input_ids: Vec<Option<u32>>,
    /// Lengths of the parts that are prefilled, if the recorder says them.
    parts: Option<Vec<i64>>,
    ids: TensorRef,
}

fn read_records(file: &TorchFile) -> Result<Vec<Pass>> {
    let pickle = file.pickle();
    let records = pickle.get(pickle.root(), "records").and_then(|records| pickle.elements(records));
    let Some(records) = records else {
        return Err(file.error("root", "records", "missing", "expected a list; was the recorder in per-token mode?"));
    };
    // Records of a pickle can share a list, so that a small file could stand for any number of positions.
    let mut budget = file.bytes().saturating_mul(EXPANSION);
    let mut passes = Vec::new();
    for (number, record) in records.enumerate() {
        let name = format!("record {number}");
        let missing = |field: &'static str, limit: &str| file.error(&name, field, "missing or of another type", limit);
        let integers = |field: &'static str| pickle.get(record, field).and_then(|value| pickle.integers(value));
        let int = |field| match pickle.get(record, field) {
            Some(Value::Int(int)) => Ok(*int),
            _ => Err(missing(field, "expected an integer")),
        };
        let Some(ids) = pickle.get(record, "topk_ids_of_layer") else {
            return Err(missing("topk_ids_of_layer", "expected a tensor; was the recorder in per-token mode?"));
        };
        let positions = integers("positions").ok_or_else(|| missing("positions", "expected a list of integers"))?;
        let input_ids = integers("input_ids").unwrap_or_default();
        let parts = integers("extend_seq_lens");
        let fields = if let Value::Dict(fields) = record { fields.len() } else { 0 };
        let numbers = fields + positions.len() + input_ids.len() + parts.as_ref().map_or(0, Vec::len);
        budget = budget.checked_sub(numbers as u64).ok_or_else(|| {
            file.error(&name, "values", "more", &format!("at most {EXPANSION} for each byte of the file"))
        })?;
        passes.push(Pass {
            pass: int("forward_pass_id")?,
            decodes: int("forward_mode")? == DECODE,
            input_ids: input_ids.into_iter().map(|id| u32::try_from(id).ok()).collect(),
            parts,
            ids: file.tensor(&name, ids)?,
            positions,
        });
    }
    Ok(passes)
}

/// The most ids, and the most other numbers, for each byte of the file; PyTorch does not compress.
const EXPANSION: u64 = 16;

/// `ForwardMode.DECODE` of SGLang.
const DECODE: i64 = 2;

/// A sequence that is being put together.
#[derive(Default)]
struct Open {
    tokens: Vec<Token>,
    /// Position of its next token.
    next: i64,
    decoded: bool,
    ended: bool,
}

struct Token {
    /// Experts, `[layers of the model x width]`.
    row: Vec<u16>,
    phase: Phase,
    id: Option<u32>,
}

/// The sequence of each token of a pass.
fn assign(open: &mut Vec<Open>, pass: &Pass) -> Vec<usize> {
    let mut continued = vec![false; open.len()];
    let mut assigned = Vec::with_capacity(pass.positions.len());
    for part in split(pass) {
        let first = pass.positions[part.start];
        let goes_on = |index: &usize| {
            let sequence: &Open = &open[*index];
            sequence.next == first && !sequence.ended && !continued[*index]
        };
        let oldest = if first == 0 { None } else { (0..continued.len()).find(goes_on) };
        let sequence = oldest.unwrap_or_else(|| {
            open.push(Open::default());
            open.len() - 1
        });
        if let Some(continued) = continued.get_mut(sequence) {
            *continued = true;
        }
        open[sequence].next = pass.positions[part.end - 1].saturating_add(1);
        open[sequence].decoded |= pass.decodes;
        assigned.extend(part.map(|_| sequence));
    }
    if pass.decodes {
        for (sequence, continued) in open.iter_mut().zip(&continued) {
            sequence.ended |= sequence.decoded && !continued;
        }
    }
    assigned
}

/// The parts of a pass that belong to one sequence each: single tokens when decoding, else as the recorder says, else
/// where positions do not count up.
fn split(pass: &Pass) -> Vec<std::ops::Range<usize>> {
    let len = pass.positions.len();
    if pass.decodes {
        return (0..len).map(|token| token..token + 1).collect();
    }
    let mut parts = Vec::new();
    let mut start = 0usize;
    for part in pass.parts.iter().flatten().filter_map(|&part| usize::try_from(part).ok()).filter(|&part| part > 0) {
        let end = start.saturating_add(part).min(len);
        if end > start {
            parts.push(start..end);
        }
        start = end;
    }
    // What the lengths leave over (or all, without lengths) is split where positions do not count up.
    for token in start..len {
        match parts.last_mut() {
            Some(last) if token > start && pass.positions[token - 1].checked_add(1) == Some(pass.positions[token]) => {
                last.end = token + 1;
            }
            _ => parts.push(token..token + 1),
        }
    }
    parts
}

struct Sequences {
    geometry: Geometry,
    /// The model's layer of each MoE layer.
    layers: Vec<usize>,
    /// Slots of a layer in the file.
    width: usize,
    model: Option<String>,
    report: ImportReport,
    open: std::vec::IntoIter<Open>,
}

impl SequenceStream for Sequences {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn report(&self) -> &ImportReport {
        &self.report
    }

    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>> {
        let Some(sequence) = self.open.next() else { return Ok(None) };
        let k = self.geometry.top_k();
        let mut experts = Vec::new();
        for token in &sequence.tokens {
            for layer in &self.layers {
                let cell = &token.row[layer * self.width..][..self.width.min(k)];
                experts.extend_from_slice(cell);
                experts.resize(experts.len() + k - cell.len(), EMPTY_SLOT);
            }
        }
        Ok(Some(SequenceBuf {
            experts,
            token_ids: sequence.tokens.iter().map(|token| token.id).collect(),
            phases: sequence.tokens.iter().map(|token| token.phase.code()).collect(),
            ..SequenceBuf::default()
        }))
    }
}
