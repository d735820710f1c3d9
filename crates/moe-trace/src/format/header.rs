//! Names of tensors, and the metadata of a trace file.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Geometry, ImportReport, MoeLayer, Phase, Result, TraceError};

/// Version that this code writes; readers accept every `1.x`.
pub(crate) const VERSION: &str = "1.0";
/// The one metadata key: a map of one entry has one byte representation.
pub(crate) const METADATA_KEY: &str = "moe_trace";

pub(crate) const EXPERTS: &str = "experts";
pub(crate) const WEIGHTS: &str = "weights";
pub(crate) const LOGITS: &str = "logits";
pub(crate) const TOKEN_IDS: &str = "token_ids";
pub(crate) const PREDICTIONS: &str = "predictions";
pub(crate) const TEXT: &str = "text";
pub(crate) const TEXT_OFFSETS: &str = "text_offsets";
pub(crate) const PHASE: &str = "phase";
pub(crate) const DOMAIN: &str = "domain";
pub(crate) const OFFSETS: &str = "sequence_offsets";

/// What the metadata of a trace says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    version: String,
    layers: Vec<MoeLayer>,
    experts: usize,
    top_k: usize,
    #[serde(default)]
    pub(crate) domains: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    #[serde(default, skip_serializing_if = "ImportReport::is_empty")]
    pub(crate) import_warnings: ImportReport,
    /// Phase of all tokens where there is no phase tensor; only the plain layout uses it.
    #[serde(skip, default = "default_phase")]
    pub(crate) phase: Phase,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

fn default_phase() -> Phase {
    Phase::Prefill
}

impl Header {
    pub(crate) fn new(geometry: &Geometry, domains: &[String], model: Option<&str>) -> Header {
        Header {
            version: VERSION.to_owned(),
            layers: geometry.moe_layers().to_vec(),
            experts: geometry.experts(),
            top_k: geometry.top_k(),
            domains: domains.to_vec(),
            model: model.map(str::to_owned),
            import_warnings: ImportReport::default(),
            phase: default_phase(),
        }
    }

    pub(crate) fn to_metadata(&self) -> HashMap<String, String> {
        let json = serde_json::to_string(self).expect("strings and integers always serialize");
        HashMap::from([(METADATA_KEY.to_owned(), json)])
    }

    /// Reads the metadata of a trace file, or of the plain layout, which has string values of its own and whose
    /// geometry is partly in `experts_shape`, `[tokens, layers, top_k]`.
    pub(crate) fn read(
        path: &Path,
        metadata: Option<&HashMap<String, String>>,
        experts_shape: [usize; 3],
    ) -> Result<(Header, Geometry)> {
        let empty = HashMap::new();
        let metadata = metadata.unwrap_or(&empty);
        let (header, geometry) = match metadata.get(METADATA_KEY) {
            Some(json) => {
                let bad = |error| field(path, METADATA_KEY, json, &format!("expected trace metadata: {error}"));
                // The version decides what else there is.
                let Version { version } = serde_json::from_str(json).map_err(bad)?;
                if !version.starts_with("1.") {
                    return Err(field(path, "version", &version, "this reader knows versions 1.x"));
                }
                let header: Header = serde_json::from_str(json).map_err(bad)?;
                let geometry = Geometry::new(header.layers.clone(), header.experts, header.top_k);
                let geometry = geometry.map_err(|error| field(path, METADATA_KEY, json, &error.to_string()))?;
                (header, geometry)
            }
            None => Header::read_plain(path, metadata, experts_shape)?,
        };
        let expected = [geometry.layers(), geometry.top_k()];
        if experts_shape[1..] != expected {
            let limit = format!("the metadata says [tokens, {}, {}]", expected[0], expected[1]);
            return Err(field(path, EXPERTS, &format!("of shape {experts_shape:?}"), &limit));
        }
        Ok((header, geometry))
    }

    fn read_plain(path: &Path, metadata: &HashMap<String, String>, shape: [usize; 3]) -> Result<(Header, Geometry)> {
        let experts = metadata.get("experts").ok_or(TraceError::MissingField {
            path: path.to_owned(),
            field: "metadata experts (number of experts a layer)",
        })?;
        let experts = experts
            .parse()
            .map_err(|_| field(path, "metadata experts", experts, "expected the number of experts a layer"))?;
        let geometry = Geometry::decoder(shape[1], experts, shape[2])
            .map_err(|error| field(path, "geometry", &format!("of shape {shape:?}"), &error.to_string()))?;
        let domains = match metadata.get("domains") {
            Some(json) => serde_json::from_str(json)
                .map_err(|error| field(path, "metadata domains", json, &format!("expected a JSON list: {error}")))?,
            None => Vec::new(),
        };
        let said = match (metadata.get("phase"), metadata.get("token_phase")) {
            (Some(phase), Some(other)) if phase != other => {
                return Err(field(path, "metadata token_phase", other, &format!("metadata phase says {phase}")));
            }
            (phase, other) => phase.or(other),
        };
        let phase = match said.map(String::as_str) {
            None | Some("prefill") => Phase::Prefill,
            Some("decode") => Phase::Decode,
            Some(other) => return Err(field(path, "metadata phase", other, "expected prefill or decode")),
        };
        let import_warnings = match metadata.get("import_warnings") {
            Some(json) => serde_json::from_str(json).map_err(|error| {
                field(path, "metadata import_warnings", json, &format!("expected a JSON list: {error}"))
            })?,
            None => ImportReport::default(),
        };
        let model = metadata.get("model").map(String::as_str);
        let header = Header { phase, domains, import_warnings, ..Header::new(&geometry, &[], model) };
        Ok((header, geometry))
    }
}

/// Returns the beginning of a text that may be as long as a file, if it is long.
pub(super) fn short(text: &str) -> String {
    const LONGEST: usize = 200;
    let shown: String = text.chars().take(LONGEST).collect();
    if shown.len() < text.len() { format!("{shown}...") } else { shown }
}

/// A [`TraceError::Field`].
pub(crate) fn field(path: &Path, field: &str, value: &str, limit: &str) -> TraceError {
    TraceError::Field { path: path.to_owned(), field: field.to_owned(), value: short(value), limit: short(limit) }
}
