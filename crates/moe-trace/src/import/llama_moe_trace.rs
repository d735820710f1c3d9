//! Traces of llama-moe-trace: CSV without a header.

use std::collections::BTreeSet;

use super::ids::{IdsSeen, no_expert, slot};
use super::model_layers::moe_layers;
use super::passes::{Passes, Seen};
use super::text_rows::TextRows;
use super::token_table::Refusal;
use super::{ImportOptions, Importer, Input, Sample};
use crate::{Geometry, ImportReport, Phase, Place, Result, SequenceBuf, SequenceStream, TraceError};

/// `pos,layer,id0,id1,...`, one row a token and layer.
///
/// Positions of prompt tokens are negative and begin anew with every micro-batch, so tokens are put in the order in which
/// they came. In the last layer llama.cpp computes only the tokens whose logits are wanted; the others have no row there.
/// A position below that of the generated token before begins another sequence. The number of experts is not in the file.
pub(super) struct LlamaMoeTrace;

impl Importer for LlamaMoeTrace {
    fn name(&self) -> &'static str {
        "llama-moe-trace"
    }

    fn description(&self) -> &'static str {
        "llama-moe-trace: CSV without header, pos,layer,id0,id1,..."
    }

    fn options(&self) -> &'static [&'static str] {
        &["--experts", "--top-k", "--config", "--stack", "--empty-id"]
    }

    fn detects(&self, sample: &Sample) -> bool {
        let numbers =
            |line: &str| line.split(',').map(|field| field.trim().parse::<i64>()).collect::<Result<Vec<_>, _>>();
        sample.first_line().and_then(|line| numbers(line).ok()).is_some_and(|fields| fields.len() > 2 && fields[1] >= 0)
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let mut scan = Reader::open(input, options)?;
        let (mut layers, mut seen) = (BTreeSet::new(), IdsSeen::default());
        while scan.next()? {
            layers.insert(scan.layer);
            seen.row(&scan.experts, || scan.place());
            if layers.len() > Geometry::MAX_LAYERS {
                let limit = format!("at most {} layers", Geometry::MAX_LAYERS);
                return Err(scan.error("layer", &scan.layer.to_string(), &limit));
            }
        }
        let layers: Vec<u32> = layers.into_iter().collect();
        let mut report = ImportReport::default();
        let found: Vec<_> = layers.iter().map(|&model_layer| (options.stack(), model_layer)).collect();
        let moe_layers = moe_layers(input.path(), options, &found, &mut report)?;
        let experts = seen.experts(input.path(), options, None, &mut report)?;
        let top_k = seen.top_k(input.path(), options, None, &mut report)?;
        let geometry = Geometry::new(moe_layers, experts, top_k)?;
        Ok(Box::new(Sequences {
            rows: Reader::open(input, options)?,
            passes: Passes::new(&geometry, false),
            geometry,
            layers,
            last: None,
            ended: false,
            model: options.model.clone(),
            report,
        }))
    }
}

/// The rows of a file.
struct Reader {
    row: TextRows,
    position: i64,
    layer: u32,
    experts: Vec<u16>,
    options: ImportOptions,
}

impl Reader {
    fn open(input: &Input, options: &ImportOptions) -> Result<Reader> {
        let row = TextRows::new(input.path(), input.reader()?, b',', 0);
        Ok(Reader { row, position: 0, layer: 0, experts: Vec::new(), options: options.clone() })
    }

    fn next(&mut self) -> Result<bool> {
        if !self.row.next()? {
            return Ok(false);
        }
        self.position = self.number("pos", 0)?;
        self.layer = self.number("layer", 1)?;
        self.experts.clear();
        for index in 2..self.row.len() {
            let id = self.number::<i64>("id", index)?;
            match slot(id, &self.options) {
                Some(id) => self.experts.push(id),
                None => return Err(self.error("id", &id.to_string(), &no_expert(id))),
            }
        }
        if self.experts.is_empty() {
            return Err(self.error("row", "without ids", "expected pos,layer,id0,..."));
        }
        Ok(true)
    }

    fn number<T: std::str::FromStr>(&self, field: &str, index: usize) -> Result<T> {
        let bytes = self.row.get(index).unwrap_or_default();
        let value = str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
        value.ok_or_else(|| self.error(field, &String::from_utf8_lossy(bytes), "expected a whole number in range"))
    }

    /// The number of the line that was read last.
    fn line(&self) -> u64 {
        self.row.line()
    }

    fn place(&self) -> Place {
        Place::Line(self.line())
    }

    fn error(&self, field: &str, value: &str, limit: &str) -> TraceError {
        self.row.error(field, value, limit)
    }
}

struct Sequences {
    geometry: Geometry,
    model: Option<String>,
    report: ImportReport,
    /// The model's layer of each MoE layer, ascending.
    layers: Vec<u32>,
    rows: Reader,
    passes: Passes,
    /// Position and layer of the row before.
    last: Option<(i64, u32)>,
    ended: bool,
}

impl Sequences {
    /// Whether the row begins another sequence: the last token was generated, and the position goes back.
    fn begins(&self) -> Result<bool> {
        let (position, layer) = (self.rows.position, self.rows.layer);
        let Some((last, last_layer)) = self.last.filter(|&(last, _)| last >= 0 && position < last) else {
            return Ok(false);
        };
        if position < 0 {
            return Ok(true);
        }
        if layer > last_layer {
            // A file that is sorted by layer has all positions of a layer before those of the next.
            return Ok(false);
        }
        if self.layers.last() != Some(&last_layer) {
            let limit = format!(
                "the token before it is at {last}, and its layers do not end with {last_layer}: requests that are computed \
                 together cannot be told apart; record one at a time"
            );
            return Err(self.rows.error("pos", &position.to_string(), &limit));
        }
        Ok(true)
    }

    fn take(&mut self) -> Result<()> {
        let rows = &self.rows;
        let layer = self
            .layers
            .binary_search(&rows.layer)
            .map_err(|_| rows.error("layer", &rows.layer.to_string(), "the file was changed while it was read"))?;
        let phase = if rows.position < 0 { Phase::Prefill } else { Phase::Decode };
        let refused = |refusal| match refusal {
            Refusal::Sparse => rows.error("pos", &rows.position.to_string(), "most cells before it are missing"),
            Refusal::Twice => rows.error("pos", &rows.position.to_string(), "an id comes twice in this row"),
            Refusal::Taken | Refusal::Phase => rows.error("pos", &rows.position.to_string(), "this row came before"),
        };
        let seen = Seen { number: rows.position, layer, pass: None, phase: Some(phase), line: rows.line() };
        let row = self.passes.token(seen).map_err(refused)?;
        self.passes.put(row, layer, &rows.experts, &[]).map_err(refused)
    }
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
        while !self.ended && self.rows.next()? {
            let begins = self.begins()?;
            self.last = Some((self.rows.position, self.rows.layer));
            let finished =
                begins.then(|| std::mem::replace(&mut self.passes, Passes::new(&self.geometry, false)).finish());
            self.take()?;
            if finished.is_some() {
                return Ok(finished);
            }
        }
        self.ended = true;
        let last = std::mem::replace(&mut self.passes, Passes::new(&self.geometry, false));
        Ok(if last.is_empty() { None } else { Some(last.finish()) })
    }
}
