//! Logs of vLLM patches that write one JSON line a token and layer.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::fields::{Role, flag, role};
use super::ids::{IdsSeen, no_expert, slot};
use super::lines::JsonLines;
use super::model_layers::moe_layers;
use super::options::PHASE_REMEDY;
use super::passes::{Passes, Seen};
use super::ranks::{Contradiction, Ranks};
use super::records::Value as _;
use super::token_table::{Refusal, TokenTable};
use super::{ImportOptions, Importer, Input, Sample};
use crate::{Geometry, ImportReport, Phase, Place, Result, SequenceBuf, SequenceStream, TraceError, WarningKind};

/// `{"type": "meta", "model_id", "top_k", ...}` and `{"type": "route", "req_id", "token_idx", "layer", "topk_ids",
/// "topk_weights"}`, optionally with `rank` and `step`.
///
/// Each request is a sequence, in the order in which they begin. `token_idx` counts the tokens of a forward pass, so tokens
/// are put in the order in which they came; a pass of one token that is not the request's first is a decode step. Lines of
/// several ranks are copies of each other, or parts (see [`Ranks`]). A further record of type meta begins another run, whose
/// requests are others. The requests of a server interleave, so the routes of
/// the whole file are held in memory. A log of a server that warms up begins with passes over made-up tokens.
pub(super) struct VllmLogger;

impl Importer for VllmLogger {
    fn name(&self) -> &'static str {
        "vllm-logger"
    }

    fn description(&self) -> &'static str {
        "vLLM MoE logger: JSON lines of type meta and route"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--experts", "--top-k", "--config", "--stack", "--empty-id"]
    }

    fn detects(&self, sample: &Sample) -> bool {
        let first = sample.first_line().unwrap_or_default();
        first.starts_with('{')
            && first.contains("\"type\"")
            && sample.contains("topk_ids")
            && sample.contains("token_idx")
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let mut report = ImportReport::default();
        let mut scan = Scan::default();
        let mut lines = JsonLines::open(input)?;
        while let Some(line) = lines.next::<Line>()? {
            scan.take(line, &lines, options, &mut report)?;
        }
        let layers: Vec<u32> = scan.layers.iter().copied().collect();
        let found: Vec<_> = layers.iter().map(|&model_layer| (options.stack(), model_layer)).collect();
        let moe_layers = moe_layers(input.path(), options, &found, &mut report)?;
        let experts = scan.ids.experts(input.path(), options, scan.meta.num_experts, &mut report)?;
        let top_k = scan.ids.top_k(input.path(), options, scan.meta.top_k, &mut report)?;
        let geometry = Geometry::new(moe_layers, experts, top_k)?;

        let mut requests: Vec<BTreeMap<i64, Passes>> = Vec::new();
        let mut number_of: HashMap<(usize, String), usize> = HashMap::new();
        let mut runs = Runs::default();
        let mut lines = JsonLines::open(input)?;
        while let Some(line) = lines.next::<Line>()? {
            let route = match line {
                Line::Route(route) => route,
                Line::Meta(_) => {
                    runs.metas += 1;
                    continue;
                }
                Line::Other => continue,
            };
            let said = route.said(&lines, options)?;
            if said.is_left_out {
                continue;
            }
            let number = *number_of.entry((runs.of(route.rank), route.req_id.text())).or_insert(requests.len());
            if number == requests.len() {
                requests.push(BTreeMap::new());
            }
            let passes =
                requests[number].entry(route.rank.unwrap_or(0)).or_insert_with(|| Passes::new(&geometry, true));
            route.put(passes, &layers, said.phase, &lines, options)?;
        }
        let model = options.model.clone().or(scan.meta.model_id).filter(|model| !model.is_empty());
        let requests = requests.into_iter();
        Ok(Box::new(Requests { geometry, model, report, lines, ranks: Ranks::default(), requests }))
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Meta(Meta),
    Route(Route),
    #[serde(other)]
    Other,
}

/// What a run says of itself.
#[derive(Default, Deserialize)]
struct Meta {
    #[serde(default)]
    model_id: Option<String>,
    #[serde(default, alias = "n_experts")]
    num_experts: Option<usize>,
    #[serde(default)]
    top_k: Option<usize>,
}

impl Meta {
    /// Adds what another record says; on failure returns the field, what the other says, and what this one says.
    fn merge(&mut self, other: Meta) -> std::result::Result<(), (&'static str, String, String)> {
        fn merge<T: PartialEq + ToString>(
            field: &'static str,
            known: &mut Option<T>,
            said: Option<T>,
        ) -> std::result::Result<(), (&'static str, String, String)> {
            match (&*known, &said) {
                (Some(known), Some(said)) if known != said => Err((field, said.to_string(), known.to_string())),
                _ => {
                    *known = known.take().or(said);
                    Ok(())
                }
            }
        }
        merge("model_id", &mut self.model_id, other.model_id)?;
        merge("num_experts", &mut self.num_experts, other.num_experts)?;
        merge("top_k", &mut self.top_k, other.top_k)
    }
}

/// Runs of a server that append to one log: a record of type meta begins one, for each process that wrote routes before.
#[derive(Default)]
struct Runs {
    /// Records of type meta so far.
    metas: usize,
    /// Of each rank, its run and the records of type meta before its last route.
    of_rank: HashMap<Option<i64>, (usize, usize)>,
}

impl Runs {
    /// The run of a route that a rank wrote.
    fn of(&mut self, rank: Option<i64>) -> usize {
        let (run, metas) = self.of_rank.entry(rank).or_insert((0, self.metas));
        if *metas < self.metas {
            (*run, *metas) = (*run + 1, self.metas);
        }
        *run
    }
}

#[derive(Deserialize)]
struct Route {
    req_id: RequestId,
    token_idx: i64,
    layer: u32,
    topk_ids: Vec<i64>,
    #[serde(default)]
    topk_weights: Vec<f32>,
    #[serde(default, alias = "tp_rank", alias = "ep_rank")]
    rank: Option<i64>,
    #[serde(default, alias = "pass", alias = "forward_pass_id")]
    step: Option<i64>,
    #[serde(flatten)]
    others: Map<String, Value>,
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

/// What the other fields of a route say.
struct RouteSaid {
    is_left_out: bool,
    phase: Option<Phase>,
}

impl Route {
    fn said(&self, lines: &JsonLines, options: &ImportOptions) -> Result<RouteSaid> {
        let mut said = super::fields::Said::default();
        for (field, value) in &self.others {
            let Some((name, role)) = role(field, options).filter(|(_, role)| *role != Role::NotUsed) else { continue };
            let flag = value.boolean().or_else(|| flag(&value.text()?));
            said.take(name, role, flag).map_err(|limit| lines.error(field, &value.to_string(), limit))?;
        }
        Ok(RouteSaid { is_left_out: said.left_out.is_some(), phase: said.phase })
    }

    /// Experts, empty slots included.
    fn experts(&self, lines: &JsonLines, options: &ImportOptions) -> Result<Vec<u16>> {
        let expert =
            |&id: &i64| slot(id, options).ok_or_else(|| lines.error("topk_ids", &id.to_string(), &no_expert(id)));
        self.topk_ids.iter().map(expert).collect()
    }

    /// Puts the route into the passes of its request and rank.
    fn put(
        &self,
        passes: &mut Passes,
        layers: &[u32],
        phase: Option<Phase>,
        lines: &JsonLines,
        options: &ImportOptions,
    ) -> Result<()> {
        let changed = |_| lines.error("layer", &self.layer.to_string(), "the file was changed while it was read");
        let layer = layers.binary_search(&self.layer).map_err(changed)?;
        if !self.topk_weights.is_empty() && self.topk_weights.len() != self.topk_ids.len() {
            let limit = format!("there are {} topk_ids", self.topk_ids.len());
            return Err(lines.error("topk_weights", &format!("{} numbers", self.topk_weights.len()), &limit));
        }
        let refused = |refusal| {
            let limit = match refusal {
                Refusal::Sparse => "most cells before it are missing",
                Refusal::Twice => "its expert came before in this layer",
                Refusal::Taken | Refusal::Phase => {
                    "it came again before its pass was through all layers: if several processes write the log, keep the \
                     lines of one, or log their rank"
                }
            };
            lines.error("token_idx", &self.token_idx.to_string(), limit)
        };
        let seen = Seen { number: self.token_idx, layer, pass: self.step, phase, line: lines.number() };
        let row = passes.token(seen).map_err(refused)?;
        passes.put(row, layer, &self.experts(lines, options)?, &self.topk_weights).map_err(refused)
    }
}

/// What the lines show together.
#[derive(Default)]
struct Scan {
    layers: BTreeSet<u32>,
    ids: IdsSeen,
    ranks: BTreeSet<Option<i64>>,
    meta: Meta,
}

impl Scan {
    fn take(
        &mut self,
        line: Line,
        lines: &JsonLines,
        options: &ImportOptions,
        report: &mut ImportReport,
    ) -> Result<()> {
        let route = match line {
            Line::Route(route) => route,
            Line::Meta(meta) => {
                return self.meta.merge(meta).map_err(|(field, said, known)| {
                    let limit = format!("a record of type meta before says {known}: import the runs apart");
                    lines.error(field, &said, &limit)
                });
            }
            Line::Other => return Ok(()),
        };
        if route.said(lines, options)?.is_left_out {
            let seen = || (Some(lines.place()), "the line is no token of a request, as it says: left out".to_owned());
            report.warn(WarningKind::ROWS_LEFT_OUT, "rename its field if it counts", seen);
            return Ok(());
        }
        for field in route.others.keys() {
            if let Some((name, Role::NotUsed)) = role(field, options) {
                let seen = || (Some(lines.place()), format!("{name} can change what lines mean, and is not used"));
                report.warn(WarningKind::COLUMN_NOT_USED, "leave out lines that do not count", seen);
            }
        }
        self.layers.insert(route.layer);
        if self.layers.len() > Geometry::MAX_LAYERS {
            let limit = format!("at most {} layers", Geometry::MAX_LAYERS);
            return Err(lines.error("layer", &route.layer.to_string(), &limit));
        }
        self.ranks.insert(route.rank);
        if self.ranks.len() > Ranks::MOST || self.ranks.len() > 1 && self.ranks.contains(&None) {
            let value = route.rank.map_or_else(|| "missing".to_owned(), |rank| rank.to_string());
            let limit = format!("expected one of at most {} processes, in every line or none", Ranks::MOST);
            return Err(lines.error("rank", &value, &limit));
        }
        let experts = route.experts(lines, options)?;
        let used = experts.iter().filter(|&&id| id != crate::EMPTY_SLOT).map(|&id| usize::from(id));
        used.for_each(|id| self.ids.id(id, || lines.place()));
        self.ids.experts_of_a_token(experts.len(), || lines.place());
        Ok(())
    }
}

struct Requests {
    geometry: Geometry,
    model: Option<String>,
    report: ImportReport,
    /// For messages.
    lines: JsonLines,
    ranks: Ranks,
    requests: std::vec::IntoIter<BTreeMap<i64, Passes>>,
}

impl Requests {
    /// Puts the ranks of a request together.
    fn join(&mut self, by_rank: BTreeMap<i64, Passes>) -> Result<SequenceBuf> {
        let mut tables: BTreeMap<i64, TokenTable> = BTreeMap::new();
        for (rank, passes) in by_rank {
            let (table, counts_positions) = passes.into_tokens();
            if counts_positions {
                let seen =
                    "lines are sorted by token, so that passes cannot be told apart: tokens are taken as prefilled";
                let place = Some(Place::Line(table.place(0)));
                self.report.warn(WarningKind::PHASE_ASSUMED, PHASE_REMEDY, || (place, seen.to_owned()));
            }
            if let Some((&other, first)) = tables.first_key_value()
                && first.keys().len() != table.keys().len()
            {
                let (tokens, others) = (table.keys().len(), first.keys().len());
                let limit =
                    format!("it has {tokens} tokens of a request, rank {other} has {others}: keep the lines of one");
                return Err(self.lines.error_at(Place::Line(table.place(0)), "rank", &rank.to_string(), &limit));
            }
            tables.insert(rank, table);
        }
        let table = self.ranks.join(&self.geometry, tables, false).map_err(|found| self.contradicts(&found))?;
        Ok(table.finish())
    }

    fn contradicts(&self, found: &Contradiction) -> TraceError {
        let limit = found.limit(&Place::Line(found.other_place));
        self.lines.error_at(Place::Line(found.place), "rank", &found.rank.to_string(), &limit)
    }
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
        match self.requests.next() {
            Some(by_rank) => self.join(by_rank).map(Some),
            None => {
                self.ranks.say(&mut self.report);
                Ok(None)
            }
        }
    }
}
