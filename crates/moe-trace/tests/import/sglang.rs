//! Forward modes, ranks and counts of SGLang's recorder.

use moe_trace::{EMPTY_SLOT, ImportOptions, MemoryTrace, RoutingSource, SequenceBuf, WarningKind};

use crate::torch_dump::{Value, dump};
use crate::{failure, read};

const EXTEND: i32 = 1;
const DECODE: i32 = 2;
const MIXED: i32 = 3;
const IDLE: i32 = 4;
const VERIFY: i32 = 5;
const DRAFT_EXTEND: i32 = 6;

/// One pass over one MoE layer of 64 experts, top-1; every token has the expert of its number in the file.
struct Dump {
    records: Vec<Value>,
    next: i32,
}

impl Dump {
    fn new() -> Dump {
        Dump { records: Vec::new(), next: 0 }
    }

    fn pass(mut self, mode: i32, positions: &[i32], parts: Option<&[i32]>) -> Dump {
        let experts = (self.next..).take(positions.len()).collect::<Vec<_>>();
        self.next += i32::try_from(positions.len()).unwrap();
        let number = i32::try_from(self.records.len()).unwrap();
        self.record(number, 0, mode, positions, parts, &experts)
    }

    fn record(
        mut self,
        pass: i32,
        rank: i32,
        mode: i32,
        positions: &[i32],
        parts: Option<&[i32]>,
        experts: &[i32],
    ) -> Dump {
        let ids = experts.iter().flat_map(|&expert| [expert, -1]).collect();
        let tokens = i32::try_from(positions.len()).unwrap();
        self.records.push(Value::Dict(vec![
            ("forward_pass_id", Value::Int(pass)),
            ("rank", Value::Int(rank)),
            ("forward_mode", Value::Int(mode)),
            ("positions", Value::ints(positions)),
            ("input_ids", Value::ints(positions)),
            ("extend_seq_lens", parts.map_or(Value::None, Value::ints)),
            ("topk_ids_of_layer", Value::Tensor(ids, vec![1, tokens, 2])),
        ]));
        self
    }

    fn bytes(self) -> Vec<u8> {
        let map = Value::Tensor((0..64).collect(), vec![1, 64]);
        dump(&Value::Dict(vec![("records", Value::List(self.records)), ("last_physical_to_logical_map", map)]))
    }

    fn read(self) -> MemoryTrace {
        read(self.bytes(), &ImportOptions::default()).unwrap()
    }

    fn failure(self) -> String {
        failure(self.bytes(), &ImportOptions::default())
    }
}

fn tokens(sequence: &SequenceBuf) -> (Vec<u16>, Vec<u8>) {
    (sequence.experts.clone(), sequence.phases.clone())
}

/// Two requests of 2 and 5 prompt tokens; three guesses of each in every pass, so that those of the first end where those of
/// the second begin. The first accepts one guess, then none; the second accepts two, then one.
#[test]
fn verified_guesses_are_decoded_once_and_requests_are_told_apart() {
    let trace = Dump::new()
        .pass(EXTEND, &[0, 1, 0, 1, 2, 3, 4], Some(&[2, 5]))
        .pass(VERIFY, &[2, 3, 4, 5, 6, 7], None)
        .pass(VERIFY, &[4, 5, 6, 8, 9, 10], None)
        .pass(VERIFY, &[5, 6, 7, 10, 11, 12], None)
        .read();
    let [a, b] = trace.sequences() else { panic!("two requests, found {}", trace.len()) };
    // Experts are numbered through the passes: 0-6, 7-12, 13-18, 19-24.
    assert_eq!(tokens(a), (vec![0, 1, 7, 8, 13, 19], vec![0, 0, 1, 1, 1, 1]));
    assert_eq!(tokens(b), (vec![2, 3, 4, 5, 6, 10, 11, 12, 16, 17, 22], vec![0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]));
    let report = trace.import_report().to_string();
    let said =
        "guesses of a draft model: 4 that a later pass computed again count as in that pass, 4 in the last passes";
    assert!(report.contains(said), "{report}");
}

#[test]
fn guesses_that_cannot_be_told_apart_are_refused() {
    let tree = Dump::new().pass(EXTEND, &[0, 1], Some(&[2])).pass(VERIFY, &[2, 3, 3, 4], None).failure();
    let expected =
        "f, record of pass 1: forward_mode is 5, the guesses of this verify pass cannot be told apart by request";
    assert!(tree.starts_with(expected) && tree.contains("--speculative-eagle-topk 1"), "{tree}");
    let late = Dump::new().pass(VERIFY, &[2, 3, 4, 7, 8, 9], None).failure();
    assert!(late.contains("forward_mode is 5"), "recorded from the middle: {late}");
}

#[test]
fn passes_of_the_draft_model_and_idle_tokens_are_left_out() {
    let trace = Dump::new()
        .pass(EXTEND, &[0, 1], Some(&[2]))
        .pass(DRAFT_EXTEND, &[0, 1], Some(&[2]))
        .record(7, 0, DECODE, &[2], None, &[-1])
        .pass(IDLE, &[0, 0], None)
        .pass(IDLE, &[], None)
        .pass(DECODE, &[2], None)
        .read();
    assert_eq!(trace.sequences().iter().map(tokens).collect::<Vec<_>>(), [(vec![0, 1, 6], vec![0, 0, 1])]);
    let report = trace.import_report();
    assert!(report.has(&WarningKind::PASSES_LEFT_OUT) && report.has(&WarningKind::ROWS_LEFT_OUT));
    let text = report.to_string();
    assert!(
        text.contains("2 passes have no expert of the model") && text.contains("2 tokens of idle passes"),
        "{text}"
    );
}

#[test]
fn mixed_passes_decode_the_tokens_that_stand_alone() {
    let trace = Dump::new()
        .pass(EXTEND, &[0, 1, 2], Some(&[3]))
        .pass(MIXED, &[0, 1, 3], Some(&[2, 1]))
        .pass(DECODE, &[4, 2], None)
        .read();
    let all: Vec<_> = trace.sequences().iter().map(tokens).collect();
    assert_eq!(all, [(vec![0, 1, 2, 5, 6], vec![0, 0, 0, 1, 1]), (vec![3, 4, 7], vec![0, 0, 1])]);
    assert!(trace.import_report().to_string().contains("1 tokens stand alone in passes of mode mixed"));
}

#[test]
fn modes_and_lengths_that_are_not_known_are_refused() {
    let split = Dump::new().pass(8, &[0, 1], Some(&[2])).failure();
    assert!(split.starts_with("f, record of pass 0: forward_mode is 8, known are 1 (extend) to 6"), "{split}");
    let short = Dump::new().pass(EXTEND, &[0, 1, 0], Some(&[2])).failure();
    assert_eq!(
        short,
        "f, record of pass 0: extend_seq_lens is [2], expected lengths that add up to the 3 positions of the pass"
    );
    let negative = Dump::new().record(0, 0, EXTEND, &[0], Some(&[1]), &[-5]).failure();
    assert_eq!(negative, "f, record of pass 0: id in layer 0 is -5, there are 64 places, and -1 for an empty slot");
}

#[test]
fn equal_records_of_several_ranks_count_once() {
    let both = |second: &[i32]| {
        Dump::new().record(3, 0, EXTEND, &[0, 1], Some(&[2]), &[5, 6]).record(3, 1, EXTEND, &[0, 1], Some(&[2]), second)
    };
    let trace = both(&[5, 6]).read();
    assert_eq!(trace.sequences()[0].experts, [5, 6]);
    assert!(trace.import_report().has(&WarningKind::RANK_COPIES));
    assert_eq!(
        both(&[5, 7]).failure(),
        "f, record of pass 3: rank is 1, rank 0 has other tokens or experts in this pass: import the records of one rank"
    );
}

#[test]
fn requests_that_cannot_be_told_apart_are_said() {
    // Both requests have come to position 2, one goes on: which is not in the file.
    let trace = Dump::new().pass(EXTEND, &[0, 1, 0, 1], Some(&[2, 2])).pass(DECODE, &[2], None).read();
    assert!(trace.import_report().has(&WarningKind::REQUESTS_UNCLEAR));
    assert_eq!(trace.sequence_len(0).unwrap(), 3, "the oldest");
    let cached = Dump::new().pass(EXTEND, &[5, 6], Some(&[2])).read();
    assert!(cached.import_report().has(&WarningKind::START_MISSING));
    assert!(!cached.import_report().has(&WarningKind::REQUESTS_UNCLEAR));
}

#[test]
fn dumps_without_tokens_are_told() {
    let counts =
        dump(&Value::Dict(vec![("rank", Value::Int(0)), ("logical_count", Value::Tensor(vec![1; 8], vec![2, 4]))]));
    assert_eq!(
        failure(counts, &ImportOptions::default()),
        "f, root: logical_count is all there is, it counts experts and has no tokens: record with \
         --expert-distribution-recorder-mode per_token"
    );
    assert_eq!(
        Dump::new().failure(),
        "f, root: records is empty, no request came between start and dump of the recorder"
    );
    let unrouted = Dump::new().record(0, 0, DECODE, &[4], None, &[-1]).failure();
    assert!(unrouted.starts_with("f, root: records is without experts"), "{unrouted}");
    let tensor = dump(&Value::Tensor(vec![1, 2], vec![2]));
    assert!(failure(tensor, &ImportOptions::default()).starts_with("f"), "a plain tensor");
}

#[test]
fn a_slot_without_an_expert_is_empty() {
    let trace = Dump::new().record(0, 0, EXTEND, &[0, 1], Some(&[2]), &[5, -1]).read();
    assert_eq!(trace.sequences()[0].experts, [5, EMPTY_SLOT]);
}
