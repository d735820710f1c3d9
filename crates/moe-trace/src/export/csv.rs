//! Comma-separated values.

use std::path::Path;

use super::Exporter;
use super::rows::{Has, for_each};
use crate::{Result, RoutingSource, TraceError, WholeFile};

/// One row a token and layer, an expert and a weight a column; empty slots are empty fields.
pub(super) struct Csv;

impl Exporter for Csv {
    fn name(&self) -> &'static str {
        "csv"
    }

    fn description(&self) -> &'static str {
        "comma-separated values, a row a token and layer; without logits, text, number of experts, empty sequences"
    }

    fn write(&self, source: &dyn RoutingSource, path: &Path, progress: &dyn Fn(usize)) -> Result<()> {
        let has = Has::of(source)?;
        let io = TraceError::writing(path);
        let file = WholeFile::create(path).map_err(&io)?;
        let failed = |error: csv::Error| match error.into_kind() {
            csv::ErrorKind::Io(source) => io(source),
            other => {
                TraceError::Malformed { path: path.to_owned(), format: "CSV", source: format!("{other:?}").into() }
            }
        };
        let mut writer = csv::Writer::from_writer(file);
        let top_k = source.geometry().top_k();
        let mut names: Vec<String> = ["sequence", "token", "layer", "stack", "phase"].map(str::to_owned).to_vec();
        for (name, present) in [("domain", has.domains), ("token_id", has.token_ids), ("prediction", has.predictions)] {
            names.extend(present.then(|| name.to_owned()));
        }
        names.extend((0..top_k).map(|slot| format!("expert_{slot}")));
        names.extend((0..top_k).filter(|_| has.weights).map(|slot| format!("weight_{slot}")));
        writer.write_record(&names).map_err(&failed)?;

        let mut fields: Vec<String> = Vec::new();
        for_each(source, has, progress, |row| {
            fields.clear();
            fields.extend([row.sequence.to_string(), row.token.to_string(), row.layer.to_string()]);
            fields.extend([row.stack.to_owned(), row.phase.to_owned()]);
            fields.extend(has.domains.then(|| row.domain.unwrap_or_default().to_owned()));
            let number = |number: Option<u32>| number.map_or_else(String::new, |number| number.to_string());
            fields.extend(has.token_ids.then(|| number(row.token_id)));
            fields.extend(has.predictions.then(|| number(row.prediction)));
            let start = fields.len();
            fields.resize(start + top_k * if has.weights { 2 } else { 1 }, String::new());
            for (index, &(slot, expert)) in row.experts.iter().enumerate() {
                fields[start + slot] = expert.to_string();
                if let Some(weights) = row.weights {
                    // The shortest notation that reads back as the same number.
                    fields[start + top_k + slot] = weights[index].to_string();
                }
            }
            writer.write_record(&fields).map_err(&failed)
        })?;
        writer.into_inner().map_err(|error| io(error.into_error()))?.commit().map_err(&io)
    }
}
