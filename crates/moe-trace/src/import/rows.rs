//! Tables with named columns: what a row can say.

use super::ImportOptions;
use super::fields::{Role, Said, role};
use super::numbers::whole;
use super::token_table::TokenKey;
use super::value_columns::is_numbered;
use crate::{EMPTY_SLOT, ImportReport, Phase, Place, Result, Stack, TraceError};

/// One row: an expert of a token in a layer, or all experts of a token in a layer.
#[derive(Debug, Default)]
pub(super) struct Row {
    pub(super) sequence: String,
    pub(super) token: i64,
    /// The forward pass that computed the token, if the file tells passes apart.
    pub(super) step: Option<i64>,
    /// The process that recorded the row.
    pub(super) rank: Option<i64>,
    pub(super) layer: u32,
    pub(super) encoder: Option<bool>,
    /// Slot of the first expert; the first free one if it is not given.
    pub(super) slot: Option<usize>,
    /// Whether the row has all experts of its token and layer, not one of them.
    pub(super) whole: bool,
    /// Experts in the router's order, [`EMPTY_SLOT`](crate::EMPTY_SLOT) for an empty slot.
    pub(super) experts: Vec<u16>,
    /// As many as experts, or none.
    pub(super) weights: Vec<f32>,
    pub(super) phase: Option<Phase>,
    pub(super) domain: Option<String>,
    pub(super) token_id: Option<u32>,
    pub(super) prediction: Option<u32>,
    /// What other fields say about the row.
    pub(super) said: Said,
}

impl Row {
    /// The key of the token.
    pub(super) fn key(&self) -> TokenKey {
        TokenKey { pass: self.step.unwrap_or(0), token: self.token }
    }

    /// Whether the layer is the decoder's, and its number: layers sort in the order of execution.
    pub(super) fn layer_key(&self, options: &ImportOptions) -> (bool, u32) {
        let encoder = self.encoder.unwrap_or(options.stack() == Stack::Encoder);
        (!encoder, self.layer)
    }

    /// The experts that are no empty slots.
    pub(super) fn used(&self) -> impl Iterator<Item = u16> {
        self.experts.iter().copied().filter(|&id| id != EMPTY_SLOT)
    }
}

/// The names by which a column is known, the first is the one that exporters write.
const COLUMNS: [&[&str]; 15] = [
    &["sequence", "seq", "seq_id", "sequence_id", "request_id", "req_id", "prompt_id"],
    &["token", "token_idx", "token_index", "pos", "position"],
    &["step", "pass", "pass_id", "forward_pass", "forward_pass_id"],
    &["rank", "tp_rank", "ep_rank"],
    &["layer", "layer_id", "layer_idx"],
    &["stack"],
    &["slot"],
    &["expert", "expert_id"],
    &["experts", "expert_ids", "topk_ids", "topk_experts"],
    &["weight", "gate", "prob", "score"],
    &["weights", "topk_weights", "gates"],
    &["phase"],
    &["domain", "dataset", "category"],
    &["token_id", "input_id"],
    &["prediction", "predicted_id"],
];

/// The options that tables with named columns use.
pub(super) const OPTIONS: &[&str] =
    &["--experts", "--top-k", "--config", "--token-phase", "--stack", "--column", "--empty-id"];

/// The columns that a table must have; `experts` or `expert_0`, ... will do for `expert`.
pub(super) const MUST: [&str; 3] = ["token", "layer", "expert"];

/// The names under which a column is known: those of lists of experts among those of an expert, and those of steps, which
/// count tokens where nothing else does, among those of a token.
pub(super) fn known_names(column: &str) -> Vec<&'static str> {
    let names = |column: &str| COLUMNS.iter().find(|names| names[0] == column).copied().unwrap_or_default().to_vec();
    match column {
        "token" => [names("token"), names("step")].concat(),
        "expert" => [names("expert"), names("experts")].concat(),
        _ => names(column),
    }
}

/// The columns that a table can have.
pub(super) fn columns() -> impl Iterator<Item = &'static str> {
    COLUMNS.iter().map(|names| names[0])
}

/// The names under which `column` may stand in a file: what the user says, or those known.
pub(super) fn names(column: &str, options: &ImportOptions) -> Vec<String> {
    if let Some((_, name)) = options.columns.iter().find(|(canonical, _)| canonical == column) {
        return vec![name.clone()];
    }
    // Who names the column of lists chooses it in place of that of single values, and the other way round.
    let is_other = |pair: &&[&str; 2]| {
        pair.contains(&column) && options.columns.iter().any(|(named, _)| pair.contains(&named.as_str()))
    };
    if [["expert", "experts"], ["weight", "weights"]].iter().any(|pair| is_other(&pair)) {
        return Vec::new();
    }
    let known = COLUMNS.iter().find(|names| names[0] == column).copied();
    let names = known.map_or_else(|| vec![column], <[&str]>::to_vec);
    // What the user reads as another column is not this one.
    names.into_iter().filter(|name| !is_mapped(name, options)).map(str::to_owned).collect()
}

/// Names of `found` that are known for a column which is read under another name.
pub(super) fn spare(found: &[&str], options: &ImportOptions) -> Vec<&'static str> {
    let mut spare = Vec::new();
    for known in COLUMNS {
        let names = names(known[0], options);
        let Some(used) = names.iter().find(|name| found.contains(&name.as_str())) else { continue };
        let is_spare = |name: &&str| name != used && found.contains(name) && !is_mapped(name, options);
        spare.extend(known.iter().copied().filter(is_spare));
    }
    spare
}

/// Names of `found` that are read as no column and have no other role.
pub(super) fn unread(found: &[&str], options: &ImportOptions) -> Vec<String> {
    let is_read = |name: &str| {
        is_numbered("expert", name)
            || is_numbered("weight", name)
            || is_mapped(name, options)
            || is_known(name)
            || role(name, options).is_some_and(|(_, role)| role != Role::NotUsed)
    };
    found.iter().filter(|name| !is_read(name)).map(|&name| name.to_owned()).collect()
}

/// Whether the user reads this column of the file as a column by its name.
fn is_mapped(name: &str, options: &ImportOptions) -> bool {
    options.columns.iter().any(|(_, mapped)| mapped == name)
}

/// Whether a name is known for some column.
pub(super) fn is_known(name: &str) -> bool {
    COLUMNS.iter().any(|names| names.contains(&name))
}

/// Whether `column` is there under a known name; columns of a slot each will do for `expert`.
pub(super) fn has_column(column: &str, found: &[&str]) -> bool {
    known_names(column).iter().any(|name| found.contains(name))
        || column == "expert" && found.iter().any(|name| is_numbered(column, name))
}

/// Whether these columns are enough for a table of routed experts.
pub(super) fn are_enough<'a>(columns: impl Iterator<Item = &'a str>) -> bool {
    let columns: Vec<&str> = columns.collect();
    MUST.iter().all(|column| has_column(column, &columns))
}

/// Phases by the names and codes that files give them.
pub(super) fn phase(text: &str) -> Option<Phase> {
    match text {
        "prefill" | "prompt" => Some(Phase::Prefill),
        "decode" | "generate" => Some(Phase::Decode),
        _ => match whole(text) {
            Some(0) => Some(Phase::Prefill),
            Some(1) => Some(Phase::Decode),
            _ => None,
        },
    }
}

/// What a file says about all rows.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pub(super) model: Option<String>,
    pub(super) experts: Option<usize>,
    pub(super) top_k: Option<usize>,
    /// Warnings of the import that the file was exported from.
    pub(super) warnings: ImportReport,
}

/// Rows of a file in their order.
pub(super) trait RowSource {
    /// Replaces `row` by the next one; tells whether there was one.
    fn next(&mut self, row: &mut Row) -> Result<bool>;

    /// Whether a row so far had a value under this name.
    fn has(&self, name: &str) -> bool;

    /// Names of the file's columns, or of the fields of the row that was read last.
    fn fields(&self) -> Vec<&str>;

    /// What the file has said so far about all rows.
    fn claims(&self) -> &Claims;

    /// The number of the row that was read last.
    fn number(&self) -> u64;

    /// Where the row of a number stands.
    fn place_of(&self, number: u64) -> Place;

    /// An error somewhere in the file.
    fn error_at(&self, place: Place, field: &str, value: &str, limit: &str) -> TraceError;

    /// Where the row that was read last stands.
    fn place(&self) -> Place {
        self.place_of(self.number())
    }

    /// An error at the row that was read last.
    fn error(&self, field: &str, value: &str, limit: &str) -> TraceError {
        self.error_at(self.place(), field, value, limit)
    }
}
