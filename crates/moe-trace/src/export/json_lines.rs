//! JSON lines.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::Exporter;
use super::rows::{Has, for_each};
use crate::{ImportReport, Result, RoutingSource, TraceError, WholeFile};

/// A line of type `meta`, then one object a token and layer; empty slots are `null`.
pub(super) struct JsonLines;

#[derive(Serialize)]
struct Meta<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    experts: usize,
    top_k: usize,
    #[serde(skip_serializing_if = "ImportReport::is_empty")]
    import_warnings: &'a ImportReport,
}

#[derive(Serialize)]
struct Line<'a> {
    sequence: usize,
    token: usize,
    layer: u32,
    stack: &'static str,
    phase: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prediction: Option<u32>,
    experts: &'a [Option<u16>],
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<&'a [Option<f32>]>,
}

impl Exporter for JsonLines {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    fn description(&self) -> &'static str {
        "JSON lines, an object a token and layer; without logits, text, empty sequences"
    }

    fn keeps_warnings(&self) -> bool {
        true
    }

    fn write(&self, source: &dyn RoutingSource, path: &Path, progress: &dyn Fn(usize)) -> Result<()> {
        let has = Has::of(source)?;
        let failed = TraceError::writing(path);
        let mut file = WholeFile::create(path).map_err(&failed)?;
        let geometry = source.geometry();
        let meta = Meta {
            r#type: "meta",
            model: source.model(),
            experts: geometry.experts(),
            top_k: geometry.top_k(),
            import_warnings: &ImportReport::of_copy(source),
        };
        let mut line = serde_json::to_vec(&meta).expect("strings and integers always serialize");
        line.push(b'\n');
        file.write_all(&line).map_err(&failed)?;
        let (mut experts, mut weights) = (Vec::new(), Vec::new());
        for_each(source, has, progress, |row| {
            experts.clear();
            experts.resize(geometry.top_k(), None);
            weights.clear();
            weights.resize(geometry.top_k(), None);
            for (index, &(slot, expert)) in row.experts.iter().enumerate() {
                experts[slot] = Some(expert);
                weights[slot] = row.weights.map(|weights| weights[index]);
            }
            line.clear();
            let object = Line {
                sequence: row.sequence,
                token: row.token,
                layer: row.layer,
                stack: row.stack,
                phase: row.phase,
                domain: row.domain,
                token_id: row.token_id,
                prediction: row.prediction,
                experts: &experts,
                weights: has.weights.then_some(&weights),
            };
            serde_json::to_writer(&mut line, &object).expect("strings and finite numbers always serialize");
            line.push(b'\n');
            file.write_all(&line).map_err(&failed)
        })?;
        file.commit().map_err(failed)
    }
}
