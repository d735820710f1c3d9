//! Sequences of the rows of a file.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::holes::Holes;
use super::ranks::{Contradiction, Ranks};
use super::row_scan::{Scan, again};
use super::rows::{Row, RowSource, names};
use super::steps::{self, Counting, Unclear};
use super::token_table::{Refusal, TokenKey, TokenTable};
use super::{ImportOptions, Input};
use crate::{
    DomainId, EMPTY_SLOT, Geometry, ImportReport, Result, SequenceBuf, SequenceStream, TraceError, WarningKind,
};

/// Opens rows as sequences: reads them once for the geometry and once for the sequences.
///
/// The rows of a sequence must follow each other, unless they tell forward passes apart: then sequences may take turns, and
/// each comes when its last row is read. Layers are ordered encoder first, then by number. Rows of several ranks
/// are copies or parts of each other (see [`Ranks`]); rows of several forward passes make one sequence (see [`steps`]).
pub(super) fn open<S: RowSource + 'static>(
    input: &Input,
    options: &ImportOptions,
    source: impl Fn() -> Result<S>,
) -> Result<Box<dyn SequenceStream>> {
    let mut first = source()?;
    let mut scan = Scan::read(&mut first, options)?;
    if let Some((column, name)) = options.columns.iter().find(|(_, name)| !first.has(name)) {
        return Err(first.error("--column", &format!("{column}={name}"), "the file has no value of this name"));
    }
    if !scan.layers.is_empty() {
        options.check_untold(input.path(), scan.lacks_phase, scan.lacks_stack)?;
    }
    let geometry = scan.geometry(input, options, &first)?;
    let domain_of = (0..).map(DomainId).zip(&scan.domains).map(|(id, name)| (name.clone(), id)).collect();
    Ok(Box::new(Rows {
        source: source()?,
        model: options.model.clone().or(first.claims().model.clone()),
        report: std::mem::take(&mut scan.report),
        geometry,
        scan,
        domain_of,
        options: options.clone(),
        row: Row::default(),
        open: HashMap::new(),
        index: 0,
        current: String::new(),
        last_cell: None,
        ranks: Ranks::default(),
        ended: false,
    }))
}

struct Rows<S> {
    source: S,
    geometry: Geometry,
    model: Option<String>,
    report: ImportReport,
    scan: Scan,
    domain_of: HashMap<String, DomainId>,
    options: ImportOptions,
    row: Row,
    /// Sequences whose last row has not come.
    open: HashMap<String, Open>,
    /// Index of the row among those that count.
    index: u64,
    /// The sequence of the row before, and rank, token and layer of that row.
    current: String,
    last_cell: Option<(i64, TokenKey, usize)>,
    ranks: Ranks,
    ended: bool,
}

/// A sequence whose rows are being read.
struct Open {
    domain: Option<DomainId>,
    /// Its tokens by rank.
    tables: BTreeMap<i64, TokenTable>,
    /// Numbers of tokens whose rows the file leaves out.
    left_out: BTreeSet<i64>,
}

impl<S: RowSource> Rows<S> {
    /// Takes the row that was read last; returns its sequence if no row of it follows.
    fn take(&mut self) -> Result<Option<SequenceBuf>> {
        let (row, source) = (&self.row, &self.source);
        let changed = |field, value: &str| source.error(field, value, "the file was changed while it was read");
        let domain = row.domain.as_ref().and_then(|domain| self.domain_of.get(domain)).copied();
        let Some(&last) = self.scan.last_rows.get(&row.sequence) else {
            return Err(changed("sequence", &row.sequence));
        };
        match self.open.get(&row.sequence) {
            None => {
                let open = Open { domain, tables: BTreeMap::new(), left_out: BTreeSet::new() };
                self.open.insert(row.sequence.clone(), open);
            }
            Some(_) if !self.scan.has_steps && self.current != row.sequence => {
                let limit = "its rows must follow each other: sort the file by sequence";
                return Err(source.error("sequence", &row.sequence, limit));
            }
            Some(open) if open.domain != domain => {
                let value = row.domain.as_deref().unwrap_or("missing");
                return Err(source.error("domain", value, "expected that of the sequence's first row"));
            }
            Some(_) => {}
        }
        for (field, is_missing) in
            [("step", self.scan.has_steps && row.step.is_none()), ("rank", self.scan.has_ranks() && row.rank.is_none())]
        {
            if is_missing {
                return Err(source.error(field, "missing", "other rows have it"));
            }
        }
        let Some(&layer) = self.scan.layers.get(&row.layer_key(&self.options)) else {
            return Err(changed("layer", &row.layer.to_string()));
        };
        if self.current != row.sequence {
            self.current.clone_from(&row.sequence);
            self.last_cell = None;
        }
        self.put(layer)?;
        self.index += 1;
        if self.index <= last {
            return Ok(None);
        }
        let sequence = std::mem::take(&mut self.row.sequence);
        match self.open.remove(&sequence) {
            Some(open) => self.finish(&sequence, open).map(Some),
            None => Ok(None),
        }
    }

    /// Puts the experts of the row into the table of its rank.
    fn put(&mut self, layer: usize) -> Result<()> {
        let (row, source) = (&self.row, &self.source);
        let rank = row.rank.filter(|_| self.scan.has_ranks()).unwrap_or(0);
        let Some(open) = self.open.get_mut(&row.sequence) else { return Ok(()) };
        let table = open.tables.entry(rank).or_insert_with(|| TokenTable::new(&self.geometry));
        let phase = row.phase.unwrap_or(self.options.phase());
        let came = table.find(row.key()).map(|at| (at, source.place_of(table.place(at))));
        let refused = |refusal| match refusal {
            Refusal::Taken | Refusal::Twice => {
                again(row, source, came.as_ref().map(|(_, place)| place.clone()), &self.options)
            }
            Refusal::Phase => source.error("phase", "another", "expected that of the token's first row"),
            Refusal::Sparse => {
                source.error("token", &row.token.to_string(), "most cells of the tokens before are missing")
            }
        };
        let at = table.row(row.key(), phase, source.number()).map_err(refused)?;
        table.set_ids(at, row.token_id, row.prediction);
        let cell = (rank, row.key(), layer);
        let has_experts = table.cell(at, layer).iter().any(|&id| id != EMPTY_SLOT);
        // Without slots, experts of one token and layer that do not follow each other may be those of two tokens.
        if row.slot.is_none() && has_experts && (row.whole || self.last_cell != Some(cell)) {
            return Err(refused(Refusal::Taken));
        }
        self.last_cell = Some(cell);
        // A row of all experts says of every slot what it has; only a list that is too short leaves slots out.
        table.came(at, layer, if row.whole && !has_used(row) { self.geometry.top_k() } else { row.experts.len() });
        for (index, &expert) in row.experts.iter().enumerate() {
            let slot = match row.slot {
                Some(slot) => slot.checked_add(index).filter(|&slot| slot < self.geometry.top_k()),
                None if row.whole => Some(index).filter(|&slot| slot < self.geometry.top_k()),
                None => table.free_slot(at, layer),
            };
            let Some(slot) = slot else {
                let limit = format!("a token uses at most {} experts in a layer; give --top-k", self.geometry.top_k());
                return Err(source.error("expert", &expert.to_string(), &limit));
            };
            if expert != EMPTY_SLOT {
                table.put(at, layer, slot, expert, row.weights.get(index).copied()).map_err(refused)?;
            }
        }
        Ok(())
    }

    /// Makes a sequence of its rows.
    fn finish(&mut self, sequence: &str, open: Open) -> Result<SequenceBuf> {
        let Open { domain, tables, left_out } = open;
        let table = self.ranks.join(&self.geometry, tables, self.scan.has_slots);
        let table = table.map_err(|contradiction| self.contradicts(&contradiction))?;
        let mut report = std::mem::take(&mut self.report);
        let holes = Holes { geometry: &self.geometry, sequence, table: &table, left_out: &left_out };
        holes.warn_of_cells(&mut report, |row| self.source.place_of(row));
        let mut gaps = ImportReport::default();
        holes.warn_of_gaps(&mut gaps, |row| self.source.place_of(row));
        self.report = report;
        let tokens = if self.scan.has_steps {
            let tells_phase = self.scan.tells_phase || self.options.phase.is_some();
            let (tokens, counting) = steps::finish(table, tells_phase).map_err(|unclear| self.unclear(&unclear))?;
            self.say(sequence, counting);
            if counting != Counting::InPass {
                self.report.merge(&gaps);
            }
            tokens
        } else {
            self.report.merge(&gaps);
            table.finish()
        };
        Ok(SequenceBuf { domain, ..tokens })
    }

    fn contradicts(&self, found: &Contradiction) -> TraceError {
        let limit = found.limit(&self.source.place_of(found.other_place));
        let fields = self.source.fields();
        let rank = names("rank", &self.options).into_iter().find(|name| fields.contains(&name.as_str()));
        let rank = rank.as_deref().unwrap_or("rank");
        let limit = format!(
            "{limit}; if each rank has requests of its own, give --column sequence={rank}; if {rank} is the expert's slot, give \
             --column slot={rank}"
        );
        self.source.error_at(self.source.place_of(found.place), "rank", &found.rank.to_string(), &limit)
    }

    fn unclear(&self, found: &Unclear) -> TraceError {
        let limit = format!("pass {}: {}", found.key.pass, found.problem);
        self.source.error_at(self.source.place_of(found.place), "token", &found.key.token.to_string(), &limit)
    }

    fn say(&mut self, sequence: &str, counting: Counting) {
        let of = if sequence.is_empty() { String::new() } else { format!(" of sequence {sequence}") };
        match counting {
            Counting::Positions => {}
            Counting::InPass => {
                let seen = || (None, format!("tokens{of} are counted within their pass: put in the order of passes"));
                self.report.warn(WarningKind::TOKENS_IN_PASS, "number tokens by their position in the sequence", seen);
            }
            Counting::Again { replaced } => {
                let seen = || {
                    (None, format!("{replaced} tokens{of} come again in later passes: each counts as in its last pass"))
                };
                self.report.warn(WarningKind::POSITIONS_AGAIN, "keep one row of each position and layer", seen);
            }
        }
    }
}

/// Whether a row has an expert.
fn has_used(row: &Row) -> bool {
    row.used().next().is_some()
}

impl<S: RowSource> SequenceStream for Rows<S> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn domains(&self) -> &[String] {
        &self.scan.domains
    }

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn report(&self) -> &ImportReport {
        &self.report
    }

    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>> {
        while !self.ended && self.source.next(&mut self.row)? {
            if self.row.said.left_out.is_none() {
                if let Some(sequence) = self.take()? {
                    return Ok(Some(sequence));
                }
            } else if let Some(open) = self.open.get_mut(&self.row.sequence) {
                open.left_out.insert(self.row.token);
            }
        }
        if let Some(name) = self.open.keys().min() {
            let limit = "the file was changed while it was read: its last rows are gone";
            return Err(self.source.error("sequence", name, limit));
        }
        if !std::mem::replace(&mut self.ended, true) {
            self.ranks.say(&mut self.report);
        }
        Ok(None)
    }
}
