//! Delimited text with named columns.

use super::fields::{Role, flag, role};
use super::ids::{no_expert, slot};
use super::numbers::{self, whole};
use super::row_sequences::open;
use super::rows::{self, Claims, Row, RowSource, are_enough, names, phase, spare};
use super::table::{Column, Table, delimiter};
use super::value_columns::{Contradiction, numbered, refuse_doubles};
use super::{ImportOptions, Importer, Input, Sample};
use crate::{EMPTY_SLOT, Place, Result, SequenceStream, TraceError, WarningKind};

/// Comma-, semicolon- or tab-separated values with a row of names: `token`, `layer` and experts.
///
/// Experts come as one a row (`expert`, optional `slot`), as columns `expert_0`, `expert_1`, ... (numbered from 0 or from 1
/// without a gap; an empty field is an empty slot), or as a list in a field (`experts`, numbers with anything between them). Weights come likewise (`weight`,
/// `weight_0`, ..., `weights`). Optional: `sequence`, `stack` (`encoder`, `decoder`), `phase` (`prefill`, `decode`, 0, 1),
/// `domain`, `token_id`, `prediction`. Usual other names are known, and options can name any column.
pub(super) struct Delimited;

impl Importer for Delimited {
    fn name(&self) -> &'static str {
        "csv"
    }

    fn description(&self) -> &'static str {
        "delimited text with named columns: token, layer, expert (or experts, or expert_0, ...), ..."
    }

    fn options(&self) -> &'static [&'static str] {
        rows::OPTIONS
    }

    fn detects(&self, sample: &Sample) -> bool {
        let header = sample.first_line().and_then(header);
        header.is_some_and(|header| are_enough(header.iter().map(String::as_str)))
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        open(input, options, || Rows::open(input, options))
    }
}

/// The names in a line, if there are at least two and none is a number.
pub(super) fn header(line: &str) -> Option<Vec<String>> {
    let fields = line.split(char::from(delimiter(line.as_bytes())));
    let names: Vec<String> = fields.map(|field| field.trim().trim_matches('"').to_owned()).collect();
    (names.len() > 1 && names.iter().all(|name| name.parse::<f64>().is_err())).then_some(names)
}

struct Rows {
    table: Table,
    columns: Columns,
    options: ImportOptions,
    claims: Claims,
}

struct Columns {
    sequence: Option<Column>,
    token: Column,
    step: Option<Column>,
    rank: Option<Column>,
    layer: Column,
    stack: Option<Column>,
    slot: Option<Column>,
    experts: Values,
    weights: Option<Values>,
    phase: Option<Column>,
    domain: Option<Column>,
    token_id: Option<Column>,
    prediction: Option<Column>,
    /// Columns of yes or no.
    roles: Vec<(Column, &'static str, Role)>,
    /// Columns that may stand for another one, which is there under another name.
    spare: Vec<&'static str>,
}

/// Where the experts or weights of a row stand.
enum Values {
    One(Column),
    Each(Vec<Column>),
    List(Column),
}

impl Rows {
    fn open(input: &Input, options: &ImportOptions) -> Result<Rows> {
        let table = Table::open(input, |_, _| Ok(()))?;
        let find = |column: &str| names(column, options).iter().find_map(|name| table.find(name));
        let must = |column: &str| {
            find(column).map_or_else(|| table.column(names(column, options).first().map_or(column, String::as_str)), Ok)
        };
        let found: Vec<&str> = table.columns().map(|(_, name)| name).collect();
        let refused = |(field, value, limit): Contradiction| table.header_error(field, &value, &limit);
        refuse_doubles(&found, options).map_err(refused)?;
        let mut claims = Claims::default();
        let mut values = |one: &str, list: &str| {
            Ok::<_, TraceError>(match (find(one), find(list)) {
                (Some(column), _) => Some(Values::One(column)),
                (None, Some(column)) => Some(Values::List(column)),
                (None, None) => numbered(one, &found).map_err(refused)?.map(|(first, names)| {
                    if first == 1 && options.known_top_k() != Some(names.len()) {
                        let seen = format!("there is no column {one}_0: {one}_1 is taken for the first slot");
                        let remedy = format!("--top-k {} says that none is missing", names.len());
                        claims.warnings.warn(WarningKind::TOP_K_INFERRED, &remedy, || (None, seen));
                    }
                    Values::Each(names.iter().filter_map(|name| table.find(name)).collect())
                }),
            })
        };
        let (experts, weights) = (values("expert", "experts")?, values("weight", "weights")?);
        let by_position = find("token");
        let roles =
            table.columns().filter_map(|(column, name)| role(name, options).map(|(name, role)| (column, name, role)));
        let columns = Columns {
            sequence: find("sequence"),
            // Without another number, steps count tokens.
            token: by_position.or(find("step")).map_or_else(|| must("token"), Ok)?,
            step: by_position.and(find("step")),
            rank: find("rank"),
            layer: must("layer")?,
            stack: find("stack"),
            slot: find("slot"),
            experts: match experts {
                Some(values) => values,
                None => Values::One(must("expert")?),
            },
            weights,
            phase: find("phase"),
            domain: find("domain"),
            token_id: find("token_id"),
            prediction: find("prediction"),
            roles: roles.collect(),
            spare: spare(&found, options),
        };
        Ok(Rows { table, columns, options: options.clone(), claims })
    }

    /// The fields of experts or weights in the row, with their column.
    fn values<'a>(&'a self, values: &'a Values) -> Result<Vec<(Column, &'a str)>> {
        Ok(match values {
            Values::One(column) => vec![(*column, self.table.text(*column)?)],
            Values::Each(columns) => {
                columns.iter().map(|&column| Ok((column, self.table.text(column)?))).collect::<Result<_>>()?
            }
            Values::List(column) => {
                numbers::fields(self.table.text(*column)?).into_iter().map(|field| (*column, field)).collect()
            }
        })
    }

    /// An optional whole number: an empty field is none.
    fn optional<T: TryFrom<i64>>(&self, column: Option<Column>, expected: &str) -> Result<Option<T>> {
        match column {
            Some(column) if !self.table.text(column)?.is_empty() => self.table.whole(column, expected).map(Some),
            _ => Ok(None),
        }
    }
}

impl RowSource for Rows {
    fn next(&mut self, row: &mut Row) -> Result<bool> {
        if !self.table.next()? {
            return Ok(false);
        }
        let (table, columns) = (&self.table, &self.columns);
        row.sequence.clear();
        if let Some(column) = columns.sequence {
            row.sequence.push_str(table.text(column)?);
        }
        row.token = table.whole(columns.token, "expected a token's number")?;
        row.step = self.optional(columns.step, "expected the number of a pass")?;
        row.rank = self.optional(columns.rank, "expected the number of a process")?;
        row.layer = table.whole(columns.layer, "expected a layer's number")?;
        row.encoder = match columns.stack {
            None => None,
            Some(column) => match table.text(column)? {
                "" => None,
                "encoder" => Some(true),
                "decoder" => Some(false),
                other => return Err(table.error(column, other, "expected encoder or decoder")),
            },
        };
        row.slot = self.optional(columns.slot, "expected a slot's number")?;
        row.said.clear();
        row.said.not_used.extend(&columns.spare);
        for &(column, name, role) in &columns.roles {
            let text = table.text(column)?;
            if !text.is_empty() {
                row.said.take(name, role, flag(text)).map_err(|limit| table.error(column, text, limit))?;
            }
        }
        row.whole = !matches!(columns.experts, Values::One(_));
        row.phase = match columns.phase {
            Some(column) if !table.text(column)?.is_empty() => {
                let text = table.text(column)?;
                Some(phase(text).ok_or_else(|| table.error(column, text, "expected prefill, decode, 0 or 1"))?)
            }
            _ => row.said.phase,
        };
        row.domain = match columns.domain {
            Some(column) => Some(table.text(column)?).filter(|domain| !domain.is_empty()).map(str::to_owned),
            None => None,
        };
        row.token_id = self.optional(columns.token_id, "expected a token id")?;
        row.prediction = self.optional(columns.prediction, "expected a token id")?;
        row.experts.clear();
        for (column, field) in self.values(&columns.experts)? {
            row.experts.push(match field {
                "" => EMPTY_SLOT,
                _ => {
                    let id = whole(field);
                    let no_expert = || table.error(column, field, &no_expert(id.unwrap_or(0)));
                    id.and_then(|id| slot(id, &self.options)).ok_or_else(no_expert)?
                }
            });
        }
        row.weights.clear();
        if let Some(values) = &columns.weights {
            for (column, field) in self.values(values)? {
                if !field.is_empty() || row.experts.get(row.weights.len()) == Some(&EMPTY_SLOT) {
                    let weight = if field.is_empty() { Ok(0.0) } else { field.parse::<f32>() };
                    let finite = weight.ok().filter(|weight| weight.is_finite());
                    row.weights.push(finite.ok_or_else(|| table.error(column, field, "expected a finite number"))?);
                }
            }
            if !row.weights.is_empty() && row.weights.len() != row.experts.len() {
                let (found, limit) =
                    (format!("{} numbers", row.weights.len()), format!("there are {} experts", row.experts.len()));
                return Err(self.error("weights", &found, &limit));
            }
        }
        Ok(true)
    }

    fn has(&self, name: &str) -> bool {
        self.table.find(name).is_some()
    }

    fn fields(&self) -> Vec<&str> {
        self.table.columns().map(|(_, name)| name).collect()
    }

    fn claims(&self) -> &Claims {
        &self.claims
    }

    fn number(&self) -> u64 {
        self.table.line()
    }

    fn place_of(&self, number: u64) -> Place {
        Place::Line(number)
    }

    fn error_at(&self, place: Place, field: &str, value: &str, limit: &str) -> TraceError {
        self.table.error_at(place, field, value, limit)
    }
}
