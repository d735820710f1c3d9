//! Keys of a configuration, checked.

use std::path::Path;

use serde_json::Value;

use super::families::{self, Family};
use crate::{Geometry, Place, Result, TraceError};

/// The language model's part of a configuration.
pub(super) struct Fields<'a> {
    path: &'a Path,
    name: &'a str,
    family: &'static Family,
    config: &'a Value,
}

impl<'a> Fields<'a> {
    /// Keys under which models of several modalities keep their language model.
    const NESTED: [&'static str; 4] = ["text_config", "thinker_config", "language_config", "llm_config"];

    /// Finds the language model: the first part, from the outside in, whose `model_type` is a known family.
    pub(super) fn of_language_model(path: &'a Path, root: &'a Value) -> Result<Fields<'a>> {
        let mut part = root;
        let mut seen: Vec<&str> = Vec::new();
        loop {
            // A part that does not name its family has the one that the model around it has by default.
            let written = part.get("model_type").and_then(Value::as_str);
            let name = written.or_else(|| seen.last().copied().and_then(families::text_model_of));
            if let Some((name, family)) = name.and_then(families::find) {
                return Ok(Fields { path, name, family, config: part });
            }
            let nested = Self::NESTED.iter().find_map(|key| part.get(key).filter(|value| value.is_object()));
            let flat = name.filter(|name| families::is_flat(name)).and_then(families::text_model_of);
            seen.push(name.unwrap_or("missing"));
            match (nested, flat.and_then(families::find)) {
                (Some(nested), _) => part = nested,
                (None, Some((name, family))) => return Ok(Fields { path, name, family, config: part }),
                (None, None) => {
                    let limit = format!(
                        "which layers of this family have experts is not known (looked for model_type here and in {}); \
                         leave the configuration out and give the experts per layer and per token instead \
                         (--experts, --top-k)",
                        Self::NESTED.join(", ")
                    );
                    return Err(error(path, "model_type", &seen.join(", in it "), &limit));
                }
            }
        }
    }

    pub(super) fn family(&self) -> &'static Family {
        self.family
    }

    /// The family's name.
    pub(super) fn name(&self) -> &'a str {
        self.name
    }

    /// The value of a key, or of a dotted path of keys; null is none.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        let value = key.split('.').try_fold(self.config, |value, key| value.get(key));
        value.filter(|value| !value.is_null())
    }

    /// Whether the file has a key without a value.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.config.get(key).is_some_and(Value::is_null)
    }

    /// A number of at least 0.
    pub(super) fn whole(&self, key: &str) -> Result<Option<usize>> {
        self.value(key).map(|value| self.as_whole(key, value)).transpose()
    }

    fn as_whole(&self, key: &str, value: &Value) -> Result<usize> {
        let whole = value.as_u64().and_then(|number| usize::try_from(number).ok());
        whole.ok_or_else(|| self.error(key, &value.to_string(), "expected a whole number"))
    }

    /// A list of numbers of at least 0.
    pub(super) fn list(&self, key: &str, value: &Value) -> Result<Vec<usize>> {
        let list = value.as_array();
        let list = list.ok_or_else(|| self.error(key, &value.to_string(), "expected a list of whole numbers"))?;
        list.iter().map(|value| self.as_whole(key, value)).collect()
    }

    /// A list of words.
    pub(super) fn words(&self, key: &str, value: &'a Value) -> Result<Vec<&'a str>> {
        let list: Option<Vec<&str>> = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        list.ok_or_else(|| self.error(key, &value.to_string(), "expected a list of words"))
    }

    /// A number within bounds, under whichever of its names the file has; one number per layer is read if all are equal.
    pub(super) fn one_of(&self, keys: &[&str], default: usize, min: usize, max: usize) -> Result<usize> {
        let mut found: Option<(&str, usize)> = None;
        for &key in keys {
            let Some(value) = self.value(key) else { continue };
            let number = match value {
                Value::Array(_) => self.equal(key, &self.list(key, value)?)?,
                _ => self.as_whole(key, value)?,
            };
            match found {
                Some((other, before)) if before != number => {
                    return Err(self.contradiction(key, &number.to_string(), &format!("{other} is {before}")));
                }
                _ => found = Some((key, number)),
            }
        }
        let (key, number) = match found {
            Some(found) => found,
            None if default > 0 => (keys[0], default),
            None => return Err(self.error(keys[0], "missing", &format!("expected one of {}", keys.join(", ")))),
        };
        if (min..=max).contains(&number) {
            Ok(number)
        } else {
            Err(self.error(key, &number.to_string(), &format!("allowed are {min}..={max}")))
        }
    }

    fn equal(&self, key: &str, list: &[usize]) -> Result<usize> {
        match list {
            [first, rest @ ..] if rest.iter().all(|number| number == first) => Ok(*first),
            _ => Err(self.error(key, &format!("{list:?}"), "expected one number, or the same for every layer")),
        }
    }

    /// Number of layers of a stack, by the names of its key.
    pub(super) fn layers(&self, keys: &[&str], default: usize) -> Result<usize> {
        self.one_of(keys, default, 1, Geometry::MAX_LAYERS)
    }

    /// Two keys that cannot both be right.
    pub(super) fn contradiction(&self, key: &str, value: &str, other: &str) -> TraceError {
        let limit = format!("but {other}: they contradict each other; remove the wrong one from the file");
        self.error(key, value, &limit)
    }

    /// An error that names the key, its value and what is allowed.
    pub(super) fn error(&self, key: &str, value: &str, limit: &str) -> TraceError {
        error(self.path, key, value, &format!("{limit} (model_type {})", self.name))
    }
}

fn error(path: &Path, key: &str, value: &str, limit: &str) -> TraceError {
    const LONGEST: usize = 80;
    let shown: String = value.chars().take(LONGEST).collect();
    let value = if shown.len() < value.len() { format!("{shown}...") } else { shown };
    TraceError::Record {
        path: path.to_owned(),
        place: Place::Entry("configuration".to_owned()),
        field: key.into(),
        value: value.into(),
        limit: limit.into(),
    }
}
