//! JSON lines with named fields.

use std::path::Path;

use serde_json::{Map, Value};

use super::lines::JsonLines;
use super::rows::{Claims, Row, RowSource, are_enough, names, open, phase};
use super::{ImportOptions, Importer, Sample};
use crate::{EMPTY_SLOT, Geometry, Result, SequenceStream, TraceError};

/// One object a line: `token`, `layer` and `experts` (a list, `null` or -1 for an empty slot) or `expert`.
///
/// Optional: `weights` or `weight`, `sequence`, `slot`, `stack`, `phase`, `domain`, `token_id`, `prediction`, with the
/// meaning and other names that they have in delimited text. An object with `"type": "meta"` says `model`, `experts`
/// (their number) and `top_k`.
pub(super) struct JsonRows;

impl Importer for JsonRows {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    fn description(&self) -> &'static str {
        "JSON lines with named fields: token, layer, experts, ..."
    }

    fn detects(&self, sample: &Sample) -> bool {
        let lines = sample.head().split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let objects = lines.take(2).filter_map(|line| serde_json::from_slice::<Map<String, Value>>(line).ok());
        objects.into_iter().any(|object| are_enough(object.keys().map(String::as_str)))
    }

    fn open(&self, path: &Path, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        open(options, || {
            Ok(Rows { lines: JsonLines::open(path)?, options: options.clone(), claims: Claims::default() })
        })
    }
}

struct Rows {
    lines: JsonLines,
    options: ImportOptions,
    claims: Claims,
}

impl Rows {
    fn find<'a>(&self, object: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
        names(field, &self.options).iter().find_map(|name| object.get(name)).filter(|value| !value.is_null())
    }

    fn number<T: TryFrom<i64>>(&self, object: &Map<String, Value>, field: &str) -> Result<Option<T>> {
        let Some(value) = self.find(object, field) else { return Ok(None) };
        let number = value.as_i64().and_then(|number| T::try_from(number).ok());
        number.map(Some).ok_or_else(|| self.lines.error(field, &value.to_string(), "expected a whole number in range"))
    }

    fn must<T: TryFrom<i64>>(&self, object: &Map<String, Value>, field: &str) -> Result<T> {
        self.number(object, field)?.ok_or_else(|| self.lines.error(field, "missing", "expected a number"))
    }

    /// A string, or a number as text.
    fn text(&self, object: &Map<String, Value>, field: &str) -> Result<Option<String>> {
        match self.find(object, field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(other) => Err(self.lines.error(field, &other.to_string(), "expected a string or a number")),
        }
    }

    /// A list, or one value as a list of one.
    fn list<'a>(&self, object: &'a Map<String, Value>, list: &str, one: &str) -> Option<&'a [Value]> {
        match self.find(object, list) {
            Some(Value::Array(values)) => Some(values),
            Some(_) => None,
            None => self.find(object, one).map(std::slice::from_ref),
        }
    }

    fn claim(&mut self, object: &Map<String, Value>) -> Result<()> {
        let count = |field: &str| -> Result<Option<usize>> {
            let Some(value) = object.get(field) else { return Ok(None) };
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            number.map(Some).ok_or_else(|| self.lines.error(field, &value.to_string(), "expected a whole number"))
        };
        let (experts, top_k) = (count("experts")?, count("top_k")?);
        let model = object.get("model").and_then(Value::as_str).map(str::to_owned);
        let claims = &mut self.claims;
        claims.experts = experts.or(claims.experts);
        claims.top_k = top_k.or(claims.top_k);
        claims.model = model.or(claims.model.take());
        Ok(())
    }
}

impl RowSource for Rows {
    fn next(&mut self, row: &mut Row) -> Result<bool> {
        let object = loop {
            match self.lines.next::<Map<String, Value>>()? {
                None => return Ok(false),
                Some(object) if object.get("type").and_then(Value::as_str) == Some("meta") => self.claim(&object)?,
                Some(object) => break object,
            }
        };
        row.sequence = self.text(&object, "sequence")?.unwrap_or_default();
        row.token = self.must(&object, "token")?;
        row.layer = self.must(&object, "layer")?;
        row.encoder = match self.text(&object, "stack")?.as_deref() {
            None => None,
            Some("encoder") => Some(true),
            Some("decoder") => Some(false),
            Some(other) => return Err(self.lines.error("stack", other, "expected encoder or decoder")),
        };
        row.slot = self.number::<i64>(&object, "slot")?.and_then(|slot| usize::try_from(slot).ok());
        row.phase = match self.text(&object, "phase")?.as_deref() {
            None => None,
            Some(text) => {
                Some(phase(text).ok_or_else(|| self.lines.error("phase", text, "expected prefill, decode, 0 or 1"))?)
            }
        };
        row.domain = self.text(&object, "domain")?;
        row.token_id = self.number(&object, "token_id")?;
        row.prediction = self.number(&object, "prediction")?;
        let Some(experts) = self.list(&object, "experts", "expert") else {
            return Err(self.lines.error("experts", "missing or no list", "expected a list of experts"));
        };
        row.experts.clear();
        for value in experts {
            let id = value.as_u64().and_then(|id| u16::try_from(id).ok());
            row.experts.push(match id.filter(|&id| usize::from(id) < Geometry::MAX_EXPERTS) {
                Some(id) => id,
                None if value.is_null() || value.as_i64() == Some(-1) => EMPTY_SLOT,
                None => {
                    let limit = format!("expected an expert below {}", Geometry::MAX_EXPERTS);
                    return Err(self.lines.error("expert", &value.to_string(), &limit));
                }
            });
        }
        row.weights.clear();
        for value in self.list(&object, "weights", "weight").unwrap_or_default() {
            let weight = if value.is_null() { Some(0.0) } else { value.as_f64() };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a trace has single precision, and the range is checked"
            )]
            let weight = weight.map(|weight| weight as f32).filter(|weight| weight.is_finite());
            row.weights.push(
                weight.ok_or_else(|| self.lines.error("weight", &value.to_string(), "expected a finite number"))?,
            );
        }
        if !row.weights.is_empty() && row.weights.len() != row.experts.len() {
            let limit = format!("there are {} experts", row.experts.len());
            return Err(self.lines.error("weights", &format!("{} numbers", row.weights.len()), &limit));
        }
        Ok(true)
    }

    fn claims(&self) -> &Claims {
        &self.claims
    }

    fn error(&self, field: &str, value: &str, limit: &str) -> TraceError {
        self.lines.error(field, value, limit)
    }
}
