//! Logs of vLLM patches that write one JSON line a token and layer.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;

use super::ids::IdsSeen;
use super::lines::JsonLines;
use super::passes::Passes;
use super::{ImportOptions, Importer, Input, Sample};
use crate::{Geometry, ImportReport, MoeLayer, Result, SequenceBuf, SequenceStream};

/// `{"type": "meta", "model_id", "top_k", ...}` and `{"type": "route", "req_id", "token_idx", "layer", "topk_ids",
/// "topk_weights"}`.
///
/// Each request is a sequence, in the order in which they begin. `token_idx` counts the tokens of a forward pass, so tokens
/// are put in the order in which they came; a pass of one token that is not the request's first is a decode step. The
/// requests of a server interleave, so the routes of the whole file are held in memory. A log of a server that warms up
/// begins with passes over made-up tokens.
pub(super) struct VllmLogger;

impl Importer for VllmLogger {
    fn name(&self) -> &'static str {
        "vllm-logger"
    }

    fn description(&self) -> &'static str {
        "vLLM MoE logger: JSON lines of type meta and route"
    }

    fn detects(&self, sample: &Sample) -> bool {
        let first = sample.first_line().unwrap_or_default();
        first.starts_with('{')
            && first.contains("\"type\"")
            && sample.contains("topk_ids")
            && sample.contains("token_idx")
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let (mut layers, mut seen, mut model) = (BTreeSet::new(), IdsSeen::default(), None);
        let mut lines = JsonLines::open(input)?;
        while let Some(line) = lines.next::<Line>()? {
            match line {
                Line::Meta { model_id } => model = model.or(model_id),
                Line::Route(route) => {
                    layers.insert(route.layer);
                    seen.row(&route.topk_ids, || lines.place());
                    if layers.len() > Geometry::MAX_LAYERS {
                        let limit = format!("at most {} layers", Geometry::MAX_LAYERS);
                        return Err(lines.error("layer", &route.layer.to_string(), &limit));
                    }
                }
                Line::Other => {}
            }
        }
        let layers: Vec<u32> = layers.into_iter().collect();
        let moe_layers = layers.iter().map(|&model_layer| MoeLayer { model_layer, stack: options.stack() }).collect();
        let mut report = ImportReport::default();
        let experts = seen.experts(input.path(), options, None, &mut report)?;
        let top_k = seen.top_k(input.path(), options, None, &mut report)?;
        let geometry = Geometry::new(moe_layers, experts, top_k)?;

        let mut requests: Vec<Passes> = Vec::new();
        let mut number_of: HashMap<String, usize> = HashMap::new();
        let mut lines = JsonLines::open(input)?;
        while let Some(line) = lines.next::<Line>()? {
            let Line::Route(route) = line else { continue };
            let number = *number_of.entry(route.req_id.text()).or_insert(requests.len());
            if number == requests.len() {
                requests.push(Passes::new(&geometry));
            }
            let changed = |_| lines.error("layer", &route.layer.to_string(), "the file was changed while it was read");
            let layer = layers.binary_search(&route.layer).map_err(changed)?;
            if !route.topk_weights.is_empty() && route.topk_weights.len() != route.topk_ids.len() {
                let limit = format!("there are {} topk_ids", route.topk_ids.len());
                return Err(lines.error("topk_weights", &format!("{} numbers", route.topk_weights.len()), &limit));
            }
            let refused = |_| {
                let limit = "most cells before it are missing, or the row came before";
                lines.error("token_idx", &route.token_idx.to_string(), limit)
            };
            let row = requests[number].token(route.token_idx, layer, None).map_err(refused)?;
            requests[number].put(row, layer, &route.topk_ids, &route.topk_weights).map_err(refused)?;
        }
        let model = options.model.clone().or(model).filter(|model| !model.is_empty());
        Ok(Box::new(Requests { geometry, model, report, requests: requests.into_iter() }))
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Meta {
        #[serde(default)]
        model_id: Option<String>,
    },
    Route(Route),
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Route {
    req_id: RequestId,
    token_idx: i64,
    layer: u32,
    topk_ids: Vec<u16>,
    #[serde(default)]
    topk_weights: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RequestId {
    Number(i64),
    Text(String),
}

impl RequestId {
    fn text(&self) -> String {
        match self {
            RequestId::Number(number) => number.to_string(),
            RequestId::Text(text) => text.clone(),
        }
    }
}

struct Requests {
    geometry: Geometry,
    model: Option<String>,
    report: ImportReport,
    requests: std::vec::IntoIter<Passes>,
}

impl SequenceStream for Requests {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn report(&self) -> &ImportReport {
        &self.report
    }

    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>> {
        Ok(self.requests.next().map(Passes::finish))
    }
}
