//! Route traces of `BigMoeOnEdge`: CSV with a `#` preamble.

use std::path::Path;

use super::ids::{not_among, slot};
use super::table::{Column, Table};
use super::token_table::{Refusal, TokenKey, TokenTable};
use super::{ImportOptions, Importer, Input, Sample, record};
use crate::{
    EMPTY_SLOT, Geometry, ImportReport, MoeLayer, Phase, Place, Result, SequenceBuf, SequenceStream, Stack, WarningKind,
};

/// `# route_trace v1`: one row an expert, columns `turn, phase, step, layer, slot, expert, weight, ...`.
///
/// The preamble names the model and lists its layers; those whose `expert_bytes` is 0 are dense. `step` is the position in
/// the context, so a turn whose steps continue those of the turn before it belongs to the same sequence. During prefill
/// the last layer has rows only for the token whose logits are wanted: the other cells stay empty. A weight `nan` means
/// that the recorder could not see it; then the sequence has no weights. Other columns are not routing: `residency`,
/// `expert_bytes` and `dropped` are what that run's cache did. An expert that was dropped was chosen and not computed.
pub(super) struct BigMoeOnEdge;

const SIGNATURE: &str = "# route_trace v1";

impl Importer for BigMoeOnEdge {
    fn name(&self) -> &'static str {
        "big-moe-on-edge"
    }

    fn description(&self) -> &'static str {
        "BigMoeOnEdge route trace: CSV with a `# route_trace v1` preamble"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--experts", "--top-k", "--empty-id"]
    }

    fn detects(&self, sample: &Sample) -> bool {
        sample.head().starts_with(SIGNATURE.as_bytes())
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let path = input.path();
        let mut preamble = Preamble::default();
        let table = Table::open(input, |line, text| preamble.read(path, line, text))?;
        let geometry = preamble.geometry(path, options)?;
        let mut ordinal_of = vec![None; preamble.layers.len()];
        for (ordinal, layer) in geometry.moe_layers().iter().enumerate() {
            ordinal_of[layer.model_layer as usize] = Some(ordinal);
        }
        let column = |name| table.column(name);
        let columns = Columns {
            turn: column("turn")?,
            phase: column("phase")?,
            step: column("step")?,
            layer: column("layer")?,
            slot: column("slot")?,
            expert: column("expert")?,
            weight: table.find("weight"),
            dropped: table.find("dropped"),
        };
        Ok(Box::new(Rows {
            tokens: TokenTable::new(&geometry),
            model: options.model.clone().or(preamble.model),
            geometry,
            ordinal_of,
            columns,
            table,
            turn: None,
            last_step: None,
            ended: false,
            options: options.clone(),
            report: ImportReport::default(),
        }))
    }
}

/// What the comment lines say.
#[derive(Debug, Default)]
struct Preamble {
    model: Option<String>,
    experts: Option<usize>,
    top_k: Option<usize>,
    /// Whether each layer listed so far has experts.
    layers: Vec<bool>,
}

impl Preamble {
    fn read(&mut self, path: &Path, line: u64, text: &str) -> Result<()> {
        let fields = || text.trim_start_matches('#').split_ascii_whitespace().filter_map(|field| field.split_once('='));
        let find = |name: &str| fields().find(|&(key, _)| key == name).map(|(_, value)| value);
        let number = |name: &str| match find(name) {
            None => Ok(None),
            Some(value) => value
                .parse::<usize>()
                .map(Some)
                .map_err(|_| record(path, Place::Line(line), name, value, "expected a whole number")),
        };
        if let Some(layer) = number("layer")? {
            if layer != self.layers.len() {
                let limit = format!("layers are listed in order, {} is next", self.layers.len());
                return Err(record(path, Place::Line(line), "layer", &layer.to_string(), limit));
            }
            self.layers.push(number("expert_bytes")? != Some(0));
            return Ok(());
        }
        if let Some((_, model)) = text.split_once("model=") {
            // A path may contain spaces; the next field ends it.
            self.model = Some(model.split(" arch=").next().unwrap_or(model).to_owned());
        }
        self.experts = number("n_expert")?.or(self.experts);
        self.top_k = number("n_expert_used")?.or(self.top_k);
        Ok(())
    }

    fn geometry(&self, path: &Path, options: &ImportOptions) -> Result<Geometry> {
        let error =
            |name, value: &str, limit: &str| record(path, Place::Entry("preamble".to_owned()), name, value, limit);
        let given = |name, found: Option<usize>, option: Option<usize>| match (found, option) {
            (Some(found), Some(option)) if found != option => {
                Err(error(name, &found.to_string(), &format!("the options say {option}")))
            }
            _ => found.or(option).ok_or_else(|| error(name, "missing", "expected a number in the preamble")),
        };
        let layers = (0u32..).zip(&self.layers).filter(|&(_, &moe)| moe);
        let layers = layers.map(|(model_layer, _)| MoeLayer { model_layer, stack: Stack::Decoder }).collect();
        Geometry::new(
            layers,
            given("n_expert", self.experts, options.experts)?,
            given("n_expert_used", self.top_k, options.top_k)?,
        )
    }
}

#[derive(Clone, Copy, Debug)]
struct Columns {
    turn: Column,
    phase: Column,
    step: Column,
    layer: Column,
    slot: Column,
    expert: Column,
    weight: Option<Column>,
    dropped: Option<Column>,
}

/// The rows, gathered to sequences.
#[derive(Debug)]
struct Rows {
    geometry: Geometry,
    model: Option<String>,
    /// MoE layer of each layer of the model.
    ordinal_of: Vec<Option<usize>>,
    columns: Columns,
    table: Table,
    tokens: TokenTable,
    turn: Option<u64>,
    last_step: Option<i64>,
    ended: bool,
    options: ImportOptions,
    report: ImportReport,
}

impl Rows {
    /// Takes the row that was read last; if it begins another sequence, returns the one before it.
    fn take(&mut self) -> Result<Option<SequenceBuf>> {
        let (columns, table) = (self.columns, &self.table);
        let turn: u64 = table.value(columns.turn, "expected a turn number")?;
        let step: i64 = table.value(columns.step, "expected a position in the context")?;
        let restarts = self.turn.is_some_and(|last| last != turn) && self.last_step.is_some_and(|last| step <= last);
        let mut finished = None;
        if restarts {
            finished = Some(std::mem::replace(&mut self.tokens, TokenTable::new(&self.geometry)).finish());
            self.last_step = None;
        }
        self.turn = Some(turn);
        self.last_step = self.last_step.max(Some(step));

        let phase = table.below(columns.phase, Phase::ALL.len())?;
        let layer = table.below(columns.layer, self.ordinal_of.len())?;
        let layer = self.ordinal_of[layer].ok_or_else(|| {
            table.error(columns.layer, &layer.to_string(), "the preamble says that this layer has no experts")
        })?;
        let slot = table.below(columns.slot, self.geometry.top_k())?;
        let expert = self.expert()?;
        let weight = match columns.weight {
            Some(column) => {
                let weight: f32 = table.value(column, "expected a number")?;
                if weight.is_infinite() {
                    return Err(table.error(column, &weight.to_string(), "expected a finite number or nan"));
                }
                Some(weight).filter(|weight| !weight.is_nan())
            }
            None => None,
        };
        let refused = |refusal| match refusal {
            Refusal::Taken => table.error(columns.slot, &slot.to_string(), "this cell came before"),
            Refusal::Twice => table.error(columns.expert, &expert.to_string(), "it came before in this step and layer"),
            Refusal::Phase => table.error(columns.phase, &phase.to_string(), "this step came before in another phase"),
            Refusal::Sparse => {
                table.error(columns.step, &step.to_string(), "most cells of the steps before are missing")
            }
        };
        let row = self.tokens.row(TokenKey::at(step), Phase::ALL[phase], table.line()).map_err(refused)?;
        if expert != EMPTY_SLOT {
            self.tokens.put(row, layer, slot, expert, weight).map_err(refused)?;
        }
        if columns.dropped.is_some_and(|column| table.text(column).is_ok_and(|text| text == "1")) {
            let seen = "an expert was dropped: the router chose it, and the run did not compute it";
            let place = Some(Place::Line(table.line()));
            self.report
                .warn(WarningKind::EXPERTS_DROPPED, "record without dropping experts", || (place, seen.to_owned()));
        }
        Ok(finished)
    }

    /// The expert of the row that was read last, [`EMPTY_SLOT`] for an empty slot.
    fn expert(&self) -> Result<u16> {
        let (column, table) = (self.columns.expert, &self.table);
        let id: i64 = table.value(column, &format!("expected an integer below {}", self.geometry.experts()))?;
        match slot(id, &self.options) {
            Some(expert) if expert == EMPTY_SLOT || usize::from(expert) < self.geometry.experts() => Ok(expert),
            _ => Err(table.error(column, &id.to_string(), &not_among(id, self.geometry.experts()))),
        }
    }
}

impl SequenceStream for Rows {
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
        if self.ended {
            return Ok(None);
        }
        while self.table.next()? {
            if let Some(sequence) = self.take()? {
                return Ok(Some(sequence));
            }
        }
        self.ended = true;
        let last = std::mem::replace(&mut self.tokens, TokenTable::new(&self.geometry));
        Ok(if last.is_empty() { None } else { Some(last.finish()) })
    }
}
