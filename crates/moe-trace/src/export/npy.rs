//! NumPy arrays.

use std::io::Write;
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::Exporter;
use crate::{ImportReport, Result, RoutingSource, TraceError, WholeFile, write_whole};

/// The ids of one sequence, u16 `[tokens, layers, top_k]`, 0xFFFF for an empty slot.
pub(super) struct Npy;

/// The arrays of streamlx, and its description beside them.
pub(super) struct Npz;

impl Exporter for Npy {
    fn name(&self) -> &'static str {
        "npy"
    }

    fn description(&self) -> &'static str {
        "NumPy array u16 [tokens, layers, top_k] of one sequence, 65535 for an empty slot; ids only"
    }

    fn write(&self, source: &dyn RoutingSource, path: &Path, progress: &dyn Fn(usize)) -> Result<()> {
        if source.len() != 1 {
            return Err(TraceError::NotExportable {
                format: "npy",
                field: "number of sequences",
                value: source.len().to_string(),
                limit: "one array is one sequence; select one, or write npz",
            });
        }
        let experts = source.sequence(0)?.to_buf().experts;
        let shape = [source.sequence_len(0)?, source.geometry().layers(), source.geometry().top_k()];
        progress(0);
        let mut bytes = header("<u2", &shape);
        bytes.extend_from_slice(bytemuck::cast_slice(&experts));
        write_whole(path, &bytes).map_err(TraceError::writing(path))
    }
}

impl Exporter for Npz {
    fn name(&self) -> &'static str {
        "npz"
    }

    fn description(&self) -> &'static str {
        "NumPy arrays experts, seq_id and pos as streamlx has them, with NAME.meta.json; ids only, without empty sequences"
    }

    fn keeps_warnings(&self) -> bool {
        true
    }

    fn write(&self, source: &dyn RoutingSource, path: &Path, progress: &dyn Fn(usize)) -> Result<()> {
        let geometry = source.geometry();
        let lengths = (0..source.len()).map(|index| source.sequence_len(index)).collect::<Result<Vec<usize>>>()?;
        let tokens = lengths.iter().sum();
        let too_long = |value: usize, field| TraceError::NotExportable {
            format: "npz",
            field,
            value: value.to_string(),
            limit: "seq_id and pos have 32 bits",
        };
        let failed = TraceError::writing(path);
        let mut file = WholeFile::create(path).map_err(&failed)?;
        // The description stands beside the arrays.
        file.set_len(0).map_err(&failed)?;
        let zipped = |source: zip::result::ZipError| match source {
            zip::result::ZipError::Io(source) => failed(source),
            other => TraceError::Malformed { path: path.to_owned(), format: "zip", source: Box::new(other) },
        };
        let mut zip = ZipWriter::new_stream(&mut file);
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
        zip.start_file("experts.npy", options).map_err(&zipped)?;
        zip.write_all(&header("<u2", &[tokens, geometry.layers(), geometry.top_k()])).map_err(&failed)?;
        for index in 0..source.len() {
            let experts = source.sequence(index)?.to_buf().experts;
            zip.write_all(bytemuck::cast_slice(&experts)).map_err(&failed)?;
            progress(index);
        }
        for (name, is_position) in [("seq_id.npy", false), ("pos.npy", true)] {
            zip.start_file(name, options).map_err(&zipped)?;
            zip.write_all(&header("<u4", &[tokens])).map_err(&failed)?;
            for (sequence, &len) in lengths.iter().enumerate() {
                let sequence = u32::try_from(sequence).map_err(|_| too_long(sequence, "sequence"))?;
                let len = u32::try_from(len).map_err(|_| too_long(len, "number of tokens"))?;
                for position in 0..len {
                    let value = if is_position { position } else { sequence };
                    zip.write_all(&value.to_le_bytes()).map_err(&failed)?;
                }
            }
        }
        zip.finish().map_err(&zipped)?;
        let layers: Vec<u32> = geometry.moe_layers().iter().map(|layer| layer.model_layer).collect();
        let mut description = serde_json::json!({
            "schema_version": 1, "model": source.model(), "n_experts": geometry.experts(), "k": geometry.top_k(),
            "n_moe_layers": layers.len(), "layer_ids": layers, "tokens": tokens, "sequences": source.len(),
        });
        let warnings = ImportReport::of_copy(source);
        if !warnings.is_empty() {
            description["import_warnings"] = serde_json::json!(warnings);
        }
        let description = serde_json::to_vec_pretty(&description).expect("strings and integers always serialize");
        let beside = path.with_extension("meta.json");
        write_whole(&beside, &description).map_err(TraceError::writing(&beside))?;
        file.commit().map_err(failed)
    }
}

/// The header of an array file; the elements begin at a multiple of 64 bytes.
fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let extents: Vec<String> = shape.iter().map(|extent| format!("{extent},")).collect();
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", extents.join(" "));
    const PREFIX: usize = 10;
    let padded = (PREFIX + text.len() + 1).next_multiple_of(64) - PREFIX - 1;
    text.extend(std::iter::repeat_n(' ', padded - text.len()));
    text.push('\n');
    let length = u16::try_from(text.len()).expect("a few extents");
    [b"\x93NUMPY\x01\x00".as_slice(), &length.to_le_bytes(), text.as_bytes()].concat()
}
