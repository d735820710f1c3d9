//! Sequences of the rows of a file.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

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
/// The rows of a sequence must follow each other. Layers are ordered encoder first, then by number. Rows of several ranks
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
        sequence: None,
        domain: None,
        tables: BTreeMap::new(),
        left_out: BTreeSet::new(),
        last_cell: None,
        finished: HashSet::new(),
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
    /// The sequence that is read, its domain, and its tokens by rank.
    sequence: Option<String>,
    domain: Option<DomainId>,
    tables: BTreeMap<i64, TokenTable>,
    /// Numbers of tokens whose rows the file leaves out, since the sequence before.
    left_out: BTreeSet<i64>,
    /// Rank, token and layer of the row before.
    last_cell: Option<(i64, TokenKey, usize)>,
    finished: HashSet<String>,
    ranks: Ranks,
    ended: bool,
}

impl<S: RowSource> Rows<S> {
    /// Takes the row that was read last; if it begins another sequence, returns the one before it.
    fn take(&mut self) -> Result<Option<SequenceBuf>> {
        let mut finished = None;
        if self.sequence.as_deref() != Some(&self.row.sequence) {
            if let Some(last) = self.sequence.replace(self.row.sequence.clone()) {
                finished = Some(self.finish()?);
                self.finished.insert(last);
            }
            if self.finished.contains(&self.row.sequence) {
                let limit = "its rows must follow each other: sort the file by sequence";
                return Err(self.source.error("sequence", &self.row.sequence, limit));
            }
            self.domain = self.row.domain.as_ref().and_then(|domain| self.domain_of.get(domain)).copied();
        }
        let (row, source) = (&self.row, &self.source);
        let domain = row.domain.as_ref().and_then(|domain| self.domain_of.get(domain)).copied();
        if domain != self.domain {
            let value = row.domain.as_deref().unwrap_or("missing");
            return Err(source.error("domain", value, "expected that of the sequence's first row"));
        }
        for (field, is_missing) in
            [("step", self.scan.has_steps && row.step.is_none()), ("rank", self.scan.has_ranks() && row.rank.is_none())]
        {
            if is_missing {
                return Err(source.error(field, "missing", "other rows have it"));
            }
        }
        let Some(&layer) = self.scan.layers.get(&row.layer_key(&self.options)) else {
            return Err(source.error("layer", &row.layer.to_string(), "the file was changed while it was read"));
        };
        self.put(layer)?;
        Ok(finished)
    }

    /// Puts the experts of the row into the table of its rank.
    fn put(&mut self, layer: usize) -> Result<()> {
        let (row, source) = (&self.row, &self.source);
        let rank = row.rank.filter(|_| self.scan.has_ranks()).unwrap_or(0);
        let table = self.tables.entry(rank).or_insert_with(|| TokenTable::new(&self.geometry));
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
        let cell = Some((rank, row.key(), layer));
        let has_experts = table.cell(at, layer).iter().any(|&id| id != EMPTY_SLOT);
        // Without slots, experts of one token and layer that do not follow each other may be those of two tokens.
        if row.slot.is_none() && has_experts && (row.whole || self.last_cell != cell) {
            return Err(refused(Refusal::Taken));
        }
        self.last_cell = cell;
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

    /// Makes the sequence of the rows so far.
    fn finish(&mut self) -> Result<SequenceBuf> {
        self.last_cell = None;
        let tables = std::mem::take(&mut self.tables);
        let table = self.ranks.join(&self.geometry, tables, self.scan.has_slots);
        let table = table.map_err(|contradiction| self.contradicts(&contradiction))?;
        let left_out = std::mem::take(&mut self.left_out);
        let mut report = std::mem::take(&mut self.report);
        let sequence = self.sequence.as_deref().unwrap_or_default();
        let holes = Holes { geometry: &self.geometry, sequence, table: &table, left_out: &left_out };
        holes.warn_of_cells(&mut report, |row| self.source.place_of(row));
        let mut gaps = ImportReport::default();
        holes.warn_of_gaps(&mut gaps, |row| self.source.place_of(row));
        self.report = report;
        let sequence = if self.scan.has_steps {
            let tells_phase = self.scan.tells_phase || self.options.phase.is_some();
            let (sequence, counting) = steps::finish(table, tells_phase).map_err(|unclear| self.unclear(&unclear))?;
            self.say(counting);
            if counting != Counting::InPass {
                self.report.merge(&gaps);
            }
            sequence
        } else {
            self.report.merge(&gaps);
            table.finish()
        };
        Ok(SequenceBuf { domain: self.domain, ..sequence })
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

    fn say(&mut self, counting: Counting) {
        let sequence = self.sequence.as_deref().unwrap_or_default();
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
            if self.row.said.left_out.is_some() {
                self.left_out.insert(self.row.token);
            } else if let Some(sequence) = self.take()? {
                return Ok(Some(sequence));
            }
        }
        if std::mem::replace(&mut self.ended, true) || self.sequence.is_none() {
            return Ok(None);
        }
        let last = self.finish()?;
        self.ranks.say(&mut self.report);
        Ok(Some(last))
    }
}
