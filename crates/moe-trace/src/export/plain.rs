//! The plain safetensors layout: the tensors of a trace with the geometry in string metadata.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Exporter;
use crate::format::Columns;
use crate::{ImportReport, Result, RoutingSource, TraceError, WholeFile};

/// `experts` `[tokens, layers, top_k]` and the other tensors of a trace file; metadata `experts`, `domains`, `model`.
pub(super) struct Plain;

impl Exporter for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn description(&self) -> &'static str {
        "plain safetensors: the tensors of a trace file, geometry in string metadata; without the layers' numbers"
    }

    fn keeps_warnings(&self) -> bool {
        true
    }

    fn write(&self, source: &dyn RoutingSource, path: &Path, progress: &dyn Fn(usize)) -> Result<()> {
        let mut columns = Columns::new(source.geometry());
        for index in 0..source.len() {
            columns.push(&source.sequence(index)?.to_buf())?;
            progress(index);
        }
        let domains = serde_json::to_string(source.domains()).expect("strings always serialize");
        // Sorted, so that equal traces give equal files.
        let mut metadata = BTreeMap::from([("experts", source.geometry().experts().to_string()), ("domains", domains)]);
        let warnings = ImportReport::of_copy(source);
        metadata.extend((!warnings.is_empty()).then(|| ("import_warnings", json!(warnings).to_string())));
        metadata.extend(source.model().map(|model| ("model", model.to_owned())));

        columns.tensors(|mut tensors| {
            // The widest types first, so that every tensor is aligned.
            tensors.sort_by_key(|&(name, dtype, ..)| (std::cmp::Reverse(dtype.bitsize()), name));
            let mut header = Map::from_iter([("__metadata__".to_owned(), json!(metadata))]);
            let mut end = 0;
            for (name, dtype, shape, bytes) in &tensors {
                let offsets = [end, end + bytes.len()];
                header.insert((*name).to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
                end = offsets[1];
            }
            let mut header = Value::Object(header).to_string();
            let padded = header.len().next_multiple_of(8);
            header.extend(std::iter::repeat_n(' ', padded - header.len()));

            let failed = TraceError::writing(path);
            let mut file = WholeFile::create(path).map_err(&failed)?;
            file.write_all(&(header.len() as u64).to_le_bytes()).map_err(&failed)?;
            file.write_all(header.as_bytes()).map_err(&failed)?;
            tensors.iter().try_for_each(|(_, _, _, bytes)| file.write_all(bytes)).map_err(&failed)?;
            file.commit().map_err(failed)
        })
    }
}
