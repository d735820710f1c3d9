//! Rows from records with named values: JSON objects, rows of Parquet.

use std::borrow::Cow;
use std::fmt::Display;

use super::ImportOptions;
use super::fields::{flag, role};
use super::ids::{no_expert, slot};
use super::rows::{Row, phase};
use crate::{EMPTY_SLOT, Result, TraceError};

/// A value of a record.
pub(super) trait Value: Display + Clone {
    /// Whether it stands for nothing.
    fn is_null(&self) -> bool;

    /// A whole number.
    fn integer(&self) -> Option<i64>;

    /// Any number.
    fn float(&self) -> Option<f64>;

    /// A text, or a number as text.
    fn text(&self) -> Option<String>;

    /// A list, or the numbers of a text.
    fn list(&self) -> Option<Cow<'_, [Self]>>;

    /// Yes or no.
    fn boolean(&self) -> Option<bool>;
}

/// One record: `find` gives the value of a column that is there and not null, `error` makes an error of the record.
pub(super) struct Record<'o, F, E> {
    pub(super) options: &'o ImportOptions,
    pub(super) find: F,
    pub(super) error: E,
}

impl<'a, V: Value + 'a, F: Fn(&str) -> Option<&'a V>, E: Fn(&str, &str, &str) -> TraceError> Record<'_, F, E> {
    /// Replaces `row` by what the record says; `fields` are all its fields.
    pub(super) fn read<'n>(&self, row: &mut Row, fields: impl Iterator<Item = (&'n str, &'n V)>) -> Result<()>
    where
        V: 'n,
    {
        let missing = |column| (self.error)(column, "missing", "expected a number");
        row.said.clear();
        for (field, value) in fields.filter(|(_, value)| !value.is_null()) {
            let Some((name, role)) = role(field, self.options) else { continue };
            let flag = value.boolean().or_else(|| flag(&value.text()?));
            row.said.take(name, role, flag).map_err(|limit| (self.error)(field, &value.to_string(), limit))?;
        }
        row.sequence = self.text("sequence")?.unwrap_or_default();
        // Without another number, steps count tokens.
        (row.token, row.step) = match (self.number("token")?, self.number("step")?) {
            (Some(token), step) => (token, step),
            (None, Some(step)) => (step, None),
            (None, None) => return Err(missing("token")),
        };
        row.rank = self.number("rank")?;
        row.layer = self.number("layer")?.ok_or_else(|| missing("layer"))?;
        row.encoder = match self.text("stack")?.as_deref() {
            None => None,
            Some("encoder") => Some(true),
            Some("decoder") => Some(false),
            Some(other) => return Err((self.error)("stack", other, "expected encoder or decoder")),
        };
        row.slot = self.number("slot")?;
        row.phase = match self.text("phase")?.as_deref() {
            None => row.said.phase,
            Some(text) => {
                let known = phase(text);
                Some(known.ok_or_else(|| (self.error)("phase", text, "expected prefill, decode, 0 or 1"))?)
            }
        };
        row.domain = self.text("domain")?;
        row.token_id = self.number("token_id")?;
        row.prediction = self.number("prediction")?;
        row.whole = (self.find)("experts").is_some();
        self.experts(&mut row.experts)?;
        self.weights(&mut row.weights)?;
        if !row.weights.is_empty() && row.weights.len() != row.experts.len() {
            let limit = format!("there are {} experts", row.experts.len());
            return Err((self.error)("weights", &format!("{} numbers", row.weights.len()), &limit));
        }
        Ok(())
    }

    fn number<T: TryFrom<i64>>(&self, column: &str) -> Result<Option<T>> {
        let Some(value) = (self.find)(column) else { return Ok(None) };
        let number = value.integer().and_then(|number| T::try_from(number).ok());
        number.map(Some).ok_or_else(|| (self.error)(column, &value.to_string(), "expected a whole number in range"))
    }

    fn text(&self, column: &str) -> Result<Option<String>> {
        let Some(value) = (self.find)(column) else { return Ok(None) };
        let text = value.text();
        text.map(Some).ok_or_else(|| (self.error)(column, &value.to_string(), "expected a string or a number"))
    }

    /// A list, or one value as a list of one.
    fn list(&self, list: &str, one: &str) -> Option<Cow<'a, [V]>> {
        match (self.find)(list) {
            Some(value) => value.list(),
            None => (self.find)(one).map(|value| Cow::Borrowed(std::slice::from_ref(value))),
        }
    }

    fn experts(&self, experts: &mut Vec<u16>) -> Result<()> {
        experts.clear();
        let Some(values) = self.list("experts", "expert") else {
            return Err((self.error)("experts", "missing or no list", "expected a list of experts"));
        };
        for value in values.iter() {
            experts.push(match value.integer().and_then(|id| slot(id, self.options)) {
                Some(id) => id,
                None if value.is_null() => EMPTY_SLOT,
                None => {
                    let limit = no_expert(value.integer().unwrap_or(0));
                    return Err((self.error)("expert", &value.to_string(), &limit));
                }
            });
        }
        Ok(())
    }

    fn weights(&self, weights: &mut Vec<f32>) -> Result<()> {
        weights.clear();
        for value in self.list("weights", "weight").unwrap_or_default().iter() {
            let weight = if value.is_null() { Some(0.0) } else { value.float() };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a trace has single precision, and the range is checked"
            )]
            let weight = weight.map(|weight| weight as f32).filter(|weight| weight.is_finite());
            weights.push(weight.ok_or_else(|| (self.error)("weight", &value.to_string(), "expected a finite number"))?);
        }
        Ok(())
    }
}
