//! What the rows of a file show together, before any sequence is made of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::ids::IdsSeen;
use super::model_layers::moe_layers;
use super::options::PHASE_REMEDY;
use super::ranks::Ranks;
use super::rows::{Row, RowSource, names, unread};
use super::token_table::TokenKey;
use super::{ImportOptions, Input};
use crate::{Geometry, ImportReport, Place, Result, Stack, TraceError, WarningKind};

/// What the rows of a file show together.
pub(super) struct Scan {
    /// Ordinal of each layer, in the order of execution.
    pub(super) layers: BTreeMap<(bool, u32), usize>,
    pub(super) domains: Vec<String>,
    /// Each sequence with the index of its last row among those that count.
    pub(super) last_rows: HashMap<String, u64>,
    /// Processes that recorded rows.
    ranks: BTreeSet<i64>,
    /// Whether rows tell forward passes apart.
    pub(super) has_steps: bool,
    /// Whether rows say the slots of their experts.
    pub(super) has_slots: bool,
    /// Whether rows say the phase of their tokens.
    pub(super) tells_phase: bool,
    /// Whether a row does not say the phase of its token.
    pub(super) lacks_phase: bool,
    /// Whether a row does not say the stack of its layer.
    pub(super) lacks_stack: bool,
    ids: IdsSeen,
    /// Fields that are not used, with the number of their first row.
    not_used: BTreeMap<&'static str, u64>,
    pub(super) report: ImportReport,
}

/// The rows of one token and layer that follow each other, without ranks.
struct Cell {
    sequence: String,
    key: TokenKey,
    layer: (bool, u32),
    /// Number of the first row.
    first: u64,
    experts: Vec<u16>,
    /// Slots that the experts take.
    width: usize,
}

impl Scan {
    /// Reads all rows.
    pub(super) fn read<S: RowSource>(source: &mut S, options: &ImportOptions) -> Result<Scan> {
        let mut scan = Scan {
            layers: BTreeMap::new(),
            domains: Vec::new(),
            last_rows: HashMap::new(),
            ranks: BTreeSet::new(),
            has_steps: false,
            has_slots: false,
            tells_phase: false,
            lacks_phase: false,
            lacks_stack: false,
            ids: IdsSeen::default(),
            not_used: BTreeMap::new(),
            report: ImportReport::default(),
        };
        let mut known: HashSet<String> = HashSet::new();
        let mut row = Row::default();
        let mut cell: Option<Cell> = None;
        let mut of_ranks = CellsOfRanks::default();
        let mut untold = ImportReport::default();
        let mut index = 0;
        while source.next(&mut row)? {
            scan.notes(&row, source);
            if row.said.left_out.is_some() {
                continue;
            }
            match scan.last_rows.get_mut(&row.sequence) {
                Some(last) => *last = index,
                None => drop(scan.last_rows.insert(row.sequence.clone(), index)),
            }
            index += 1;
            refuse_twice(&row, source)?;
            scan.layer(&row, source, options)?;
            for id in row.used() {
                scan.ids.id(usize::from(id), || source.place());
            }
            scan.has_steps |= row.step.is_some();
            scan.has_slots |= row.slot.is_some();
            scan.tells_phase |= row.phase.is_some();
            scan.lacks_phase |= row.phase.is_none();
            scan.lacks_stack |= row.encoder.is_none();
            if row.phase.is_none() && options.phase.is_none() {
                untold.warn(WarningKind::PHASE_ASSUMED, PHASE_REMEDY, || {
                    (Some(source.place()), "the phase is missing, the token is taken as prefilled".to_owned())
                });
            }
            if row.rank.is_some() {
                scan.rank(&row, source)?;
                of_ranks.take(&row, source.number(), options, &mut scan.ids, source);
            } else {
                scan.cell(&row, source, options, &mut cell)?;
            }
            if let Some(domain) = row.domain.take_if(|domain| !known.contains(domain)) {
                if scan.domains.len() > usize::from(u16::MAX) {
                    return Err(source.error("domain", &domain, "at most 65536 domains"));
                }
                known.insert(domain.clone());
                scan.domains.push(domain);
            }
        }
        scan.end_cell(cell, source, options)?;
        of_ranks.end(&mut scan.ids, source);
        if let Some(&first) = scan.not_used.values().min() {
            let names = scan.not_used.keys().copied().collect::<Vec<_>>().join(", ");
            let seen = || {
                (Some(source.place_of(first)), format!("fields that can change what rows mean are not used: {names}"))
            };
            let remedy = "leave out rows that do not count, or read a field by --column COLUMN=NAME";
            scan.report.warn(WarningKind::COLUMN_NOT_USED, remedy, seen);
        }
        if scan.has_steps && !scan.tells_phase && options.phase.is_none() {
            let seen =
                || (None, "phases are taken from the passes: one token that is not in the first is decoded".to_owned());
            scan.report.warn(WarningKind::PHASE_ASSUMED, PHASE_REMEDY, seen);
        } else {
            scan.report.merge(&untold);
        }
        scan.layers.values_mut().enumerate().for_each(|(ordinal, value)| *value = ordinal);
        Ok(scan)
    }

    /// Whether several processes recorded rows.
    pub(super) fn has_ranks(&self) -> bool {
        self.ranks.len() > 1
    }

    /// The geometry that the rows and the options say.
    pub(super) fn geometry<S: RowSource>(
        &mut self,
        input: &Input,
        options: &ImportOptions,
        source: &S,
    ) -> Result<Geometry> {
        let stack = |is_decoder| if is_decoder { Stack::Decoder } else { Stack::Encoder };
        let layers: Vec<(Stack, u32)> =
            self.layers.keys().map(|&(is_decoder, model_layer)| (stack(is_decoder), model_layer)).collect();
        let moe_layers = moe_layers(input.path(), options, &layers, &mut self.report)?;
        let claims = source.claims();
        let experts = options.claimed_experts(claims.experts, &claims.warnings);
        let experts = self.ids.experts(input.path(), options, experts, &mut self.report)?;
        let top_k = options.claimed_top_k(claims.top_k, &claims.warnings);
        let top_k = self.ids.top_k(input.path(), options, top_k, &mut self.report)?;
        self.report.merge(&options.still_open(&claims.warnings));
        Geometry::new(moe_layers, experts, top_k)
    }

    /// Notes fields of the row that are not used, and says if it is left out.
    fn notes<S: RowSource>(&mut self, row: &Row, source: &S) {
        for &name in &row.said.not_used {
            self.not_used.entry(name).or_insert_with(|| source.number());
        }
        if let Some(name) = row.said.left_out {
            let seen =
                || (Some(source.place()), format!("the row is no token of a sequence, as {name} says: left out"));
            self.report.warn(WarningKind::ROWS_LEFT_OUT, "rename the column if the row counts", seen);
        }
    }

    fn layer<S: RowSource>(&mut self, row: &Row, source: &S, options: &ImportOptions) -> Result<()> {
        self.layers.insert(row.layer_key(options), 0);
        if self.layers.len() > Geometry::MAX_LAYERS {
            let limit = format!("at most {} layers", Geometry::MAX_LAYERS);
            return Err(source.error("layer", &row.layer.to_string(), &limit));
        }
        Ok(())
    }

    fn rank<S: RowSource>(&mut self, row: &Row, source: &S) -> Result<()> {
        let rank = row.rank.unwrap_or(0);
        if self.ranks.insert(rank) && self.ranks.len() > Ranks::MOST {
            let limit =
                format!("at most {} processes; if it is the expert's slot, give --column slot=rank", Ranks::MOST);
            return Err(source.error("rank", &rank.to_string(), &limit));
        }
        Ok(())
    }

    /// Takes a row of a file without ranks.
    fn cell<S: RowSource>(
        &mut self,
        row: &Row,
        source: &S,
        options: &ImportOptions,
        cell: &mut Option<Cell>,
    ) -> Result<()> {
        let (key, layer) = (row.key(), row.layer_key(options));
        match cell.as_mut() {
            Some(cell) if cell.sequence == row.sequence && cell.key == key && cell.layer == layer => {
                let repeats = row.used().any(|id| cell.experts.contains(&id));
                if repeats || row.whole && row.slot.is_none() {
                    return Err(again(row, source, Some(source.place_of(cell.first)), options));
                }
                cell.experts.extend(row.used());
                cell.width = cell.width.max(row.slot.unwrap_or(cell.width).saturating_add(row.experts.len()));
            }
            _ => {
                let next = Cell {
                    sequence: row.sequence.clone(),
                    key,
                    layer,
                    first: source.number(),
                    experts: row.used().collect(),
                    width: row.slot.unwrap_or(0).saturating_add(row.experts.len()),
                };
                let before = cell.replace(next);
                self.end_cell(before, source, options)?;
            }
        }
        Ok(())
    }

    fn end_cell<S: RowSource>(&mut self, cell: Option<Cell>, source: &S, options: &ImportOptions) -> Result<()> {
        let Some(cell) = cell else { return Ok(()) };
        let place = source.place_of(cell.first);
        if let Some(top_k) = options.known_top_k().filter(|&top_k| top_k < cell.width) {
            let limit = format!(
                "top-k is {top_k}: give --top-k {} or more, or, if token counts within a forward pass, name the column that \
                 counts passes (--column step=NAME)",
                cell.width
            );
            return Err(source.error_at(place, "number of experts", &cell.width.to_string(), &limit));
        }
        self.ids.experts_of_a_token(cell.width, || place);
        Ok(())
    }
}

/// The experts of one sequence by token and layer.
type CellsByToken = BTreeMap<(TokenKey, (bool, u32)), CellOfRanks>;

/// The experts of every token and layer that several processes recorded: of one sequence or, where rows tell forward passes
/// apart, of all, which may take turns.
#[derive(Default)]
struct CellsOfRanks {
    sequence: String,
    cells: HashMap<String, CellsByToken>,
}

/// The experts of one token and layer, of all ranks.
struct CellOfRanks {
    experts: Vec<u16>,
    /// Slots that they take.
    width: usize,
    /// Number of the first row.
    first: u64,
}

impl CellsOfRanks {
    fn take<S: RowSource>(&mut self, row: &Row, number: u64, options: &ImportOptions, ids: &mut IdsSeen, source: &S) {
        if self.sequence != row.sequence {
            if row.step.is_none() {
                self.end(ids, source);
            }
            self.sequence.clone_from(&row.sequence);
        }
        let cell = (row.key(), row.layer_key(options));
        let new = CellOfRanks { experts: Vec::new(), width: 0, first: number };
        let cells = match self.cells.get_mut(&row.sequence) {
            Some(cells) => cells,
            None => self.cells.entry(row.sequence.clone()).or_default(),
        };
        let cell = cells.entry(cell).or_insert(new);
        for id in row.used() {
            if !cell.experts.contains(&id) {
                cell.experts.push(id);
            }
        }
        let by_slot = row.slot.map_or(0, |slot| slot.saturating_add(row.experts.len()));
        cell.width = cell.width.max(cell.experts.len()).max(by_slot);
    }

    fn end<S: RowSource>(&mut self, ids: &mut IdsSeen, source: &S) {
        let mut cells: Vec<CellOfRanks> =
            std::mem::take(&mut self.cells).into_values().flat_map(BTreeMap::into_values).collect();
        cells.sort_unstable_by_key(|cell| cell.first);
        for CellOfRanks { width, first, .. } in cells {
            ids.experts_of_a_token(width, || source.place_of(first));
        }
    }
}

/// Refuses a row that has an expert twice.
fn refuse_twice<S: RowSource>(row: &Row, source: &S) -> Result<()> {
    let mut used = row.used().collect::<Vec<_>>();
    used.sort_unstable();
    let Some(pair) = used.windows(2).find(|pair| pair[0] == pair[1]) else { return Ok(()) };
    let limit = format!(
        "it stands twice among the experts of token {} in layer {}: a router chooses an expert once; if the id marks an empty \
         slot, give --empty-id {}",
        row.token, row.layer, pair[0]
    );
    Err(source.error("expert", &pair[0].to_string(), &limit))
}

/// The error of a token that has experts of a layer already.
pub(super) fn again<S: RowSource>(row: &Row, source: &S, before: Option<Place>, options: &ImportOptions) -> TraceError {
    let before = before.map_or_else(String::new, |place| format!(" in {place}"));
    let (pass, counts) = match row.step {
        Some(step) => (format!(" of pass {step}"), ""),
        None => {
            let counts =
                "if token counts within a forward pass, name the column that counts passes (--column step=NAME); ";
            (String::new(), counts)
        }
    };
    let fields = source.fields();
    let requests = if names("sequence", options).iter().any(|name| fields.contains(&name.as_str())) {
        String::new()
    } else {
        let unread = unread(&fields, options);
        let could = if unread.is_empty() { String::new() } else { format!("; not used are {}", unread.join(", ")) };
        format!("if it is a token of another request, name the column of requests (--column sequence=NAME{could}); ")
    };
    let limit = format!(
        "it{pass} came before{before} in layer {}: {requests}{counts}if several processes write the file, name the column of \
         their ranks (--column rank=NAME)",
        row.layer
    );
    source.error("token", &row.token.to_string(), &limit)
}
