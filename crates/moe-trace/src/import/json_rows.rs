//! JSON lines with named fields.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::lines::JsonLines;
use super::numbers::{self, whole, whole_float};
use super::records::{self, Record};
use super::row_sequences::open;
use super::rows::{self, Claims, Row, RowSource, are_enough, names, spare};
use super::value_columns::refuse_doubles;
use super::{ImportOptions, Importer, Input, Sample};
use crate::{ImportReport, Place, Result, SequenceStream, TraceError};

/// One object a line, or one array of objects: `token`, `layer` and `experts` (a list, `null` or -1 for an empty slot) or `expert`.
///
/// Optional: `weights` or `weight`, `sequence`, `slot`, `stack`, `phase`, `domain`, `token_id`, `prediction`, with the
/// meaning and other names that they have in delimited text. An object with `"type": "meta"` says `model`, `experts`
/// (their number), `top_k`, and `import_warnings` of an earlier import.
pub(super) struct JsonRows;

impl Importer for JsonRows {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    fn description(&self) -> &'static str {
        "JSON lines, or an array of objects, with named fields: token, layer, experts, ..."
    }

    fn options(&self) -> &'static [&'static str] {
        rows::OPTIONS
    }

    fn detects(&self, sample: &Sample) -> bool {
        let objects = sample.objects();
        // A first object that is cut off with the sample, or broken, is told by its keys.
        let keys = if objects.is_empty() { sample.first_keys() } else { Vec::new() };
        objects.iter().any(|object| are_enough(object.keys().map(String::as_str)))
            || are_enough(keys.iter().map(String::as_str))
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        open(input, options, || {
            let (lines, claims) = (JsonLines::open(input)?, Claims::default());
            Ok(Rows { lines, options: options.clone(), named: BTreeSet::new(), claims, spare: None, last: Map::new() })
        })
    }
}

impl records::Value for Value {
    fn is_null(&self) -> bool {
        self.is_null()
    }

    fn integer(&self) -> Option<i64> {
        match self {
            Value::String(text) => whole(text),
            _ => self.as_i64().or_else(|| whole_float(self.as_f64()?)),
        }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Value::String(text) => numbers::fields(text).first().and_then(|number| number.parse().ok()),
            _ => self.as_f64(),
        }
    }

    fn text(&self) -> Option<String> {
        match self {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    fn list(&self) -> Option<Cow<'_, [Value]>> {
        match self {
            Value::Array(values) => Some(Cow::Borrowed(values)),
            Value::String(text) => {
                Some(numbers::fields(text).into_iter().map(|field| Value::String(field.to_owned())).collect())
            }
            _ => None,
        }
    }

    fn boolean(&self) -> Option<bool> {
        self.as_bool()
    }
}

/// A JSON object in which no key stands twice.
struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Object, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Object, A::Error> {
                let mut object = Map::new();
                while let Some(key) = map.next_key::<String>()? {
                    if object.contains_key(&key) {
                        return Err(de::Error::custom(format_args!("the key \"{key}\" stands twice in the object")));
                    }
                    let value = map.next_value()?;
                    object.insert(key, value);
                }
                Ok(Object(object))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

struct Rows {
    lines: JsonLines,
    options: ImportOptions,
    /// Names that the options give to columns and that came.
    named: BTreeSet<String>,
    claims: Claims,
    /// Fields of the first row that may stand for another one, which is there under another name.
    spare: Option<Vec<&'static str>>,
    /// The object that was read last.
    last: Map<String, Value>,
}

impl Rows {
    fn find<'a>(&self, object: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
        names(field, &self.options).iter().find_map(|name| object.get(name)).filter(|value| !value.is_null())
    }

    fn claim(&mut self, object: &Map<String, Value>) -> Result<()> {
        let count = |field: &str| -> Result<Option<usize>> {
            let Some(value) = object.get(field) else { return Ok(None) };
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            number.map(Some).ok_or_else(|| self.lines.error(field, &value.to_string(), "expected a whole number"))
        };
        let (experts, top_k) = (count("experts")?, count("top_k")?);
        let model = object.get("model").and_then(Value::as_str).map(str::to_owned);
        let warnings: ImportReport = match object.get("import_warnings") {
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|_| self.lines.error("import_warnings", &value.to_string(), "expected a list of warnings"))?,
            None => ImportReport::default(),
        };
        let known =
            [self.claims.experts.map(|count| count.to_string()), self.claims.top_k.map(|count| count.to_string())];
        let said = [experts.map(|count| count.to_string()), top_k.map(|count| count.to_string())];
        let fields = ["experts", "top_k"].into_iter().zip(known.into_iter().zip(said));
        let model_twice = ("model", (self.claims.model.clone(), model.clone()));
        for (field, pair) in fields.chain([model_twice]) {
            if let (Some(known), Some(said)) = pair
                && known != said
            {
                let limit = format!("a record of type meta before says {known}: import the runs apart");
                return Err(self.lines.error(field, &said, &limit));
            }
        }
        let claims = &mut self.claims;
        claims.warnings.merge(&warnings);
        claims.experts = experts.or(claims.experts);
        claims.top_k = top_k.or(claims.top_k);
        claims.model = model.or(claims.model.take());
        Ok(())
    }
}

impl RowSource for Rows {
    fn next(&mut self, row: &mut Row) -> Result<bool> {
        let object = loop {
            match self.lines.next::<Object>()?.map(|Object(object)| object) {
                None => return Ok(false),
                Some(object) if object.get("type").and_then(Value::as_str) == Some("meta") => self.claim(&object)?,
                Some(object) => break object,
            }
        };
        let given: Vec<&str> =
            object.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.as_str()).collect();
        refuse_doubles(&given, &self.options)
            .map_err(|(_, value, limit)| self.lines.error("fields", &value, &limit))?;
        for (_, name) in &self.options.columns {
            if object.contains_key(name) && !self.named.contains(name) {
                self.named.insert(name.clone());
            }
        }
        let find = |column: &str| self.find(&object, column);
        let error = |field: &str, value: &str, limit: &str| self.lines.error(field, value, limit);
        let fields = object.iter().map(|(name, value)| (name.as_str(), value));
        Record { options: &self.options, find, error }.read(row, fields)?;
        let found = || spare(&object.keys().map(String::as_str).collect::<Vec<_>>(), &self.options);
        row.said.not_used.extend(&*self.spare.get_or_insert_with(found));
        self.last = object;
        Ok(true)
    }

    fn has(&self, name: &str) -> bool {
        self.named.contains(name)
    }

    fn fields(&self) -> Vec<&str> {
        self.last.keys().map(String::as_str).collect()
    }

    fn claims(&self) -> &Claims {
        &self.claims
    }

    fn number(&self) -> u64 {
        self.lines.number()
    }

    fn place_of(&self, number: u64) -> Place {
        Place::Line(number)
    }

    fn error_at(&self, place: Place, field: &str, value: &str, limit: &str) -> TraceError {
        self.lines.error_at(place, field, value, limit)
    }
}
