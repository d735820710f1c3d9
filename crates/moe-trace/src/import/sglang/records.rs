//! Records of the recorder: one forward pass each.

use crate::Result;
use crate::import::pickle::Value;
use crate::import::torch_file::{TensorRef, TorchFile};

/// The most ids, and the most other numbers, for each byte of the file; PyTorch does not compress.
pub(super) const EXPANSION: u64 = 16;

/// How the recorder is asked for tokens.
const PER_TOKEN: &str = "record with --expert-distribution-recorder-mode per_token";

/// What a forward pass computes: SGLang's `ForwardMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Prompts, or parts of prompts.
    Extend,
    /// One token per request.
    Decode,
    /// Parts of prompts, then one token for each of the other requests.
    Mixed,
    /// Nothing; tokens of such a pass fill up a batch.
    Idle,
    /// Guesses of a draft model, judged by the model.
    Verify,
    /// The draft model itself.
    DraftExtend,
}

impl Mode {
    /// The mode of a code. Codes above 6 changed their meaning between versions of SGLang.
    fn of(code: i64) -> Option<Mode> {
        Some(match code {
            1 => Mode::Extend,
            2 => Mode::Decode,
            3 => Mode::Mixed,
            4 => Mode::Idle,
            5 => Mode::Verify,
            6 => Mode::DraftExtend,
            _ => return None,
        })
    }
}

/// One forward pass.
pub(super) struct Pass {
    pub(super) pass: i64,
    /// The process that recorded it.
    pub(super) rank: Option<i64>,
    pub(super) mode: Mode,
    pub(super) positions: Vec<i64>,
    pub(super) input_ids: Vec<Option<u32>>,
    /// Lengths of the parts that belong to one request each, if the recorder gives them.
    pub(super) parts: Option<Vec<usize>>,
    pub(super) ids: TensorRef,
}

impl Pass {
    /// The name of the record in messages.
    pub(super) fn name(&self) -> String {
        format!("record of pass {}", self.pass)
    }
}

/// Reads the records in the order of their passes; passes without a token are left out.
pub(super) fn read(file: &TorchFile) -> Result<Vec<Pass>> {
    let pickle = file.pickle();
    let records = pickle.get(pickle.root(), "records").and_then(|records| pickle.elements(records));
    let Some(records) = records else {
        return Err(match pickle.get(pickle.root(), "logical_count") {
            Some(_) => file.error(
                "root",
                "logical_count",
                "all there is",
                &format!("it counts experts and has no tokens: {PER_TOKEN}"),
            ),
            None => file.error(
                "root",
                "records",
                "missing",
                "expected a dictionary of SGLang's expert distribution recorder",
            ),
        });
    };
    if records.len() == 0 {
        return Err(file.error("root", "records", "empty", "no request came between start and dump of the recorder"));
    }
    // Records of a pickle can share a list, so that a small file could stand for any number of positions.
    let mut budget = file.bytes().saturating_mul(EXPANSION);
    let mut passes = Vec::new();
    for (number, record) in records.enumerate() {
        let name = format!("record {number}");
        let missing = |field: &'static str, limit: &str| file.error(&name, field, "missing or of another type", limit);
        let integers = |field: &'static str| pickle.get(record, field).and_then(|value| pickle.integers(value));
        let optional = |field| match pickle.get(record, field) {
            Some(Value::Int(int)) => Some(*int),
            _ => None,
        };
        let int = |field| optional(field).ok_or_else(|| missing(field, "expected an integer"));
        let Some(ids) = pickle.get(record, "topk_ids_of_layer") else {
            return Err(missing("topk_ids_of_layer", &format!("expected a tensor: {PER_TOKEN}")));
        };
        let positions = integers("positions").ok_or_else(|| missing("positions", "expected a list of integers"))?;
        let input_ids = integers("input_ids").unwrap_or_default();
        let parts = integers("extend_seq_lens");
        let fields = if let Value::Dict(fields) = record { fields.len() } else { 0 };
        let numbers = fields + positions.len() + input_ids.len() + parts.as_ref().map_or(0, Vec::len);
        budget = budget.checked_sub(numbers as u64).ok_or_else(|| {
            file.error(&name, "values", "more", &format!("at most {EXPANSION} for each byte of the file"))
        })?;
        if positions.is_empty() {
            continue;
        }
        let (pass, code) = (int("forward_pass_id")?, int("forward_mode")?);
        let mode = Mode::of(code).ok_or_else(|| {
            let limit = "known are 1 (extend) to 6 (draft extend), the meaning of others depends on SGLang's version: \
                         record without split prefill, disaggregation and diffusion";
            file.error(&format!("record of pass {pass}"), "forward_mode", &code.to_string(), limit)
        })?;
        passes.push(Pass {
            pass,
            rank: optional("rank"),
            mode,
            input_ids: input_ids.into_iter().map(|id| u32::try_from(id).ok()).collect(),
            parts: lengths(file, pass, parts, positions.len())?,
            ids: file.tensor(&name, ids)?,
            positions,
        });
    }
    passes.sort_by_key(|pass| pass.pass);
    Ok(passes)
}

/// Lengths of parts, which must add up to the tokens of the pass.
fn lengths(file: &TorchFile, pass: i64, parts: Option<Vec<i64>>, tokens: usize) -> Result<Option<Vec<usize>>> {
    let Some(parts) = parts else { return Ok(None) };
    let lengths: Option<Vec<usize>> = parts.iter().map(|&part| usize::try_from(part).ok()).collect();
    let sum = |lengths: &[usize]| lengths.iter().try_fold(0usize, |sum, &part| sum.checked_add(part));
    match lengths {
        Some(lengths) if sum(&lengths) == Some(tokens) => Ok(Some(lengths)),
        _ => {
            let limit = format!("expected lengths that add up to the {tokens} positions of the pass");
            Err(file.error(&format!("record of pass {pass}"), "extend_seq_lens", &format!("{parts:?}"), &limit))
        }
    }
}
