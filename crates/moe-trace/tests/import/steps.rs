//! Forward passes, positions that come again, and fields that change what rows mean.

use moe_trace::{ImportOptions, MemoryTrace, Phase, RoutingSource, WarningKind};

use crate::{failure, read};

fn plain(text: impl AsRef<[u8]>) -> MemoryTrace {
    read(text, &ImportOptions::default()).unwrap()
}

/// A prompt of 3 tokens and 4 decode steps, numbered within their pass.
const PASSES: [(u32, u32); 7] = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (3, 0), (4, 0)];

fn lists(with_step: bool) -> String {
    let row = |(number, (step, token)): (usize, (u32, u32))| {
        let step = if with_step { format!("\"step\": {step}, ") } else { String::new() };
        let (a, b) = (number % 4, 4 + number % 3);
        format!("{{{step}\"token\": {token}, \"layer\": 0, \"experts\": [{a}, {b}]}}\n")
    };
    PASSES.into_iter().enumerate().map(row).collect()
}

#[test]
fn tokens_that_count_within_a_pass_make_one_sequence() {
    let trace = plain(lists(true));
    assert_eq!((trace.len(), trace.geometry().top_k()), (1, 2));
    assert_eq!(trace.sequences()[0].experts, [0, 4, 1, 5, 2, 6, 3, 4, 0, 5, 1, 6, 2, 4]);
    assert_eq!(trace.sequences()[0].phases, [0, 0, 0, 1, 1, 1, 1]);
    let report = trace.import_report();
    assert!(report.has(&WarningKind::TOKENS_IN_PASS) && report.has(&WarningKind::PHASE_ASSUMED));
    let said = ImportOptions { phase: Some(Phase::Prefill), ..ImportOptions::default() };
    assert_eq!(read(lists(true), &said).unwrap().sequences()[0].phases, [0; 7], "the user says the phase");

    let message = failure(lists(false), &ImportOptions::default());
    let expected = "f, line 5: token is 0, it came before in line 4 in layer 0: if it is a token of another request, name the column of \
                    requests (--column sequence=NAME); if token counts within a forward pass, name the column that counts passes (--column step=NAME)";
    assert!(message.starts_with(expected), "{message}");
}

#[test]
fn rows_of_one_expert_in_passes_make_one_sequence() {
    let rows = |header: &str, with_step: bool| {
        let row = |&(step, token): &(u32, u32)| {
            let start = if with_step { format!("{step},") } else { String::new() };
            format!("{start}{token},0,{}\n{start}{token},0,{}\n", step % 4, 4 + token)
        };
        format!("{header}\n{}", PASSES.iter().map(row).collect::<String>())
    };
    let trace = plain(rows("step,token,layer,expert", true));
    assert_eq!(trace.sequences()[0].experts, [0, 4, 0, 5, 0, 6, 1, 4, 2, 4, 3, 4, 0, 4]);
    assert_eq!(trace.sequences()[0].phases, [0, 0, 0, 1, 1, 1, 1]);
    // Without steps, and with a top-k for two tokens, the rows are not taken for one token.
    let wide = ImportOptions { top_k: Some(4), ..ImportOptions::default() };
    let message = failure(rows("token,layer,expert", false), &wide);
    assert!(message.contains("came before in line ") && message.contains("--column step=NAME"), "{message}");
    let named = ImportOptions { columns: vec![("step".into(), "batch".into())], ..ImportOptions::default() };
    let other = read(rows("batch,token,layer,expert", true), &named).unwrap();
    assert_eq!(other.sequences(), trace.sequences());
    let narrow = ImportOptions { top_k: Some(1), ..ImportOptions::default() };
    let message = failure("token,layer,expert\n0,0,1\n0,0,2\n", &narrow);
    assert!(
        message.starts_with("f, line 2: number of experts is 2, top-k is 1: give --top-k 2 or more, or, if"),
        "{message}"
    );
}

#[test]
fn steps_without_tokens_count_tokens() {
    let trace = plain("step,layer,expert\n0,0,1\n1,0,2\n2,0,3\n");
    assert_eq!((&trace.sequences()[0].experts[..], &trace.sequences()[0].phases[..]), (&[1, 2, 3][..], &[0, 0, 0][..]));
    let mapped = ImportOptions { columns: vec![("token".into(), "step".into())], ..ImportOptions::default() };
    let trace = read("step,token,layer,expert\n7,0,0,1\n8,0,0,2\n", &mapped).unwrap();
    assert_eq!((&trace.sequences()[0].experts[..], &trace.sequences()[0].phases[..]), (&[1, 2][..], &[0, 0][..]));
}

#[test]
fn positions_that_come_again_count_as_in_their_last_pass() {
    let rows = [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (2, 5)];
    let row = |(expert, (step, token)): (usize, (u32, u32))| format!("{step},{token},0,{expert}\n");
    let text = format!("step,pos,layer,expert\n{}", rows.into_iter().enumerate().map(row).collect::<String>());
    let trace = plain(&text);
    assert_eq!(trace.sequences()[0].experts, [0, 1, 2, 5, 6, 7]);
    assert_eq!(trace.sequences()[0].phases, [0, 0, 1, 1, 1, 1]);
    let report = trace.import_report().to_string();
    assert!(report.contains("2 tokens come again in later passes: each counts as in its last pass"), "{report}");
    let back = failure(format!("{text}3,1,0,3\n"), &ImportOptions::default());
    assert!(back.starts_with("f, line 10: token is 1, pass 3: its pass does not begin behind"), "{back}");
    let missing = failure(format!("{text},6,0,3\n"), &ImportOptions::default());
    assert_eq!(missing, "f, line 10: step is missing, other rows have it");
}

#[test]
fn rows_that_are_no_tokens_are_left_out() {
    let text = "token,layer,expert,is_padding,Accepted\n0,0,1,0,1\n1,0,2,0,1\n2,0,9,1,1\n3,0,8,0,0\n";
    let trace = plain(text);
    assert_eq!((&trace.sequences()[0].experts[..], trace.geometry().experts()), (&[1, 2][..], 3));
    let report = trace.import_report().to_string();
    let said = "f, line 4: the row is no token of a sequence, as is_padding says: left out (2 times)";
    assert!(report.contains(said), "{report}");
    let count = failure(text.replace("9,1,1", "9,7,1"), &ImportOptions::default());
    assert_eq!(count, "f, line 4: is_padding is 7, expected true, false, 0 or 1");
}

#[test]
fn the_phase_may_be_a_flag() {
    let text = "{\"token\": 0, \"layer\": 0, \"experts\": [1], \"is_prefill\": true}\n\
                {\"token\": 1, \"layer\": 0, \"experts\": [0], \"is_prefill\": 0}\n";
    let trace = plain(text);
    assert_eq!(trace.sequences()[0].phases, [0, 1]);
    assert!(!trace.import_report().has(&WarningKind::PHASE_ASSUMED));
}

#[test]
fn fields_that_are_not_used_are_said() {
    let text = "token,pos,layer,expert,dropped,batch\n0,7,0,1,0,0\n1,8,0,0,1,0\n";
    let report = plain(text).import_report().to_string();
    let said = "f, line 2: fields that can change what rows mean are not used: batch, dropped, pos;";
    assert!(report.contains(said), "{report}");
    let positions = ImportOptions { columns: vec![("token".into(), "pos".into())], ..ImportOptions::default() };
    let report = read(text, &positions).unwrap().import_report().to_string();
    assert!(report.contains("are not used: batch, dropped, token;"), "{report}");
}

/// Lines sorted by token look like passes of one token, but their numbers are positions.
#[test]
fn logs_that_are_sorted_by_token_have_no_decode_steps() {
    let line = |token: u32, layer: u32| {
        format!(
            "{{\"type\": \"route\", \"req_id\": \"r\", \"token_idx\": {token}, \"layer\": {layer}, \"topk_ids\": [{}]}}\n",
            token % 3
        )
    };
    let text: String = (0..5).flat_map(|token| [line(token, 0), line(token, 1)]).collect();
    let trace = plain(text);
    assert_eq!(trace.sequences()[0].phases, [0; 5]);
    assert!(trace.import_report().to_string().contains("lines are sorted by token"));
}

#[test]
fn padding_of_a_log_is_left_out() {
    let line = |token: u32, rest: &str| {
        format!(
            "{{\"type\": \"route\", \"req_id\": 1, \"token_idx\": {token}, \"layer\": 0, \"topk_ids\": [{token}]{rest}}}\n"
        )
    };
    let text =
        [line(0, ", \"is_prefill\": 1"), line(1, ", \"is_prefill\": 1"), line(9, ", \"is_padding\": true")].concat();
    let trace = plain(text + &line(0, ", \"is_prefill\": false, \"dropped\": 1"));
    assert_eq!((trace.geometry().experts(), &trace.sequences()[0].phases[..]), (2, &[0, 0, 1][..]));
    let report = trace.import_report();
    assert!(report.has(&WarningKind::ROWS_LEFT_OUT) && report.has(&WarningKind::COLUMN_NOT_USED));
}

/// Rows of sequences, each with its steps, in the order of `keys`: (sequence, step, token).
fn in_turn(keys: impl IntoIterator<Item = (u32, u32, u32)>) -> String {
    let row = |(sequence, step, token): (u32, u32, u32)| {
        format!("{sequence},{step},{token},0,{},{}\n", (sequence + token) % 4, 4 + token % 3)
    };
    format!("sequence,step,token,layer,expert_0,expert_1\n{}", keys.into_iter().map(row).collect::<String>())
}

#[test]
fn sequences_that_take_turns_in_passes_are_those_that_follow_each_other() {
    // Sequence 0 has a prompt of two tokens and ends first, sequence 1 begins a pass later.
    let first = [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 2, 3)];
    let second = [(1, 1, 0), (1, 2, 1), (1, 3, 2), (1, 4, 3)];
    let sorted = plain(in_turn(first.into_iter().chain(second)));
    let mut keys: Vec<_> = first.into_iter().chain(second).collect();
    keys.sort_by_key(|&(sequence, step, token)| (step, sequence, token));
    let mixed = plain(in_turn(keys.iter().copied()));
    assert_eq!((mixed.len(), mixed.sequences()), (2, sorted.sequences()));
    assert_eq!(mixed.sequences()[0].phases, [0, 0, 1, 1]);
    keys.sort_by_key(|&(sequence, step, _)| (step, std::cmp::Reverse(sequence)));
    assert_eq!(plain(in_turn(keys)).sequences(), sorted.sequences(), "in the order of their last rows");

    let unstepped = in_turn(first.into_iter().zip(second).flat_map(|(a, b)| [a, b])).replace("step", "lap");
    let message = failure(unstepped, &ImportOptions::default());
    assert_eq!(message, "f, line 4: sequence is 0, its rows must follow each other: sort the file by sequence");
}
