//! Rows that are missing, and rows that two requests share.

use std::fmt::Write as _;

use moe_trace::{EMPTY_SLOT, ImportOptions, MemoryTrace, RoutingSource, TraceError, WarningKind, exporter};

use crate::{failure, read};

/// Options that leave nothing to be inferred, so that every warning is about a hole.
fn said(strict: bool) -> ImportOptions {
    ImportOptions { experts: Some(8), top_k: Some(2), strict, ..ImportOptions::default() }
}

/// Rows of all experts, of the tokens and layers that `keep` says.
fn lists(keep: impl Fn(u32, u32) -> bool) -> String {
    let mut text = "sequence,token,layer,phase,expert_0,expert_1\n".to_owned();
    for (token, layer) in (0..25).flat_map(|token| (0..3).map(move |layer| (token, layer))) {
        if keep(token, layer) {
            writeln!(text, "chat,{token},{layer},decode,{},{}", token % 4, 4 + (token + layer) % 4).unwrap();
        }
    }
    text
}

fn warned(text: &str) -> String {
    let report = read(text, &said(false)).unwrap().import_report().to_string();
    assert!(matches!(read(text, &said(true)), Err(TraceError::Warned { .. })), "--strict takes it: {report}");
    report
}

#[test]
fn a_whole_file_has_no_holes() {
    assert!(read(lists(|_, _| true), &said(true)).is_ok());
    assert!(read(lists(|token, _| token >= 7), &said(true)).is_ok(), "a first position that is not 0 is no hole");
}

#[test]
fn numbers_that_no_token_has_are_told() {
    let report = warned(&lists(|token, _| !(10..15).contains(&token) && token != 20));
    let expected = "f, line 32: 5 tokens are missing between the tokens 9 and 15 of sequence chat, which become neighbours \
                    (2 times)";
    assert!(report.starts_with(expected), "{report}");
}

#[test]
fn rows_that_the_file_leaves_out_are_no_gap() {
    let row = |token: u32| format!("{token},0,decode,{},{}\n", token % 4, token == 3);
    let text = format!("token,layer,phase,expert,is_padding\n{}", (0..6).map(row).collect::<String>());
    let options = ImportOptions { experts: Some(8), ..ImportOptions::default() };
    let report = read(&text, &options).unwrap().import_report().clone();
    assert!(report.has(&WarningKind::ROWS_LEFT_OUT) && !report.has(&WarningKind::TOKENS_MISSING), "{report}");
}

#[test]
fn layers_without_a_row_are_told() {
    let report = warned(&lists(|token, layer| layer != 1 || token % 2 == 0));
    let expected =
        "f, line 5: token 1 of sequence chat has rows, but none of layer 1: its slots stay empty there (12 times)";
    assert!(report.starts_with(expected), "{report}");
    let prefilled = lists(|token, layer| layer < 2 || token == 24).replace("decode", "prefill");
    let options = ImportOptions { strict: false, ..said(false) };
    let report = read(prefilled, &options).unwrap().import_report().clone();
    let text = report.to_string();
    assert!(report.has(&WarningKind::UNROUTED_TOKENS) && !report.has(&WarningKind::CELLS_MISSING), "{text}");
    assert!(text.contains("no row of the last layer 2: some engines compute the last layer only"), "{text}");
}

#[test]
fn a_file_that_is_cut_by_a_row_is_told() {
    let cut = |text: &str| text.trim_end().rsplit_once('\n').unwrap().0.to_owned() + "\n";
    let report = warned(&cut(&lists(|_, _| true)));
    assert!(report.contains("token 24 of sequence chat has rows, but none of layer 2"), "{report}");

    let row = |index: u32| format!("{},{},decode,{}\n", index / 4, index / 2 % 2, index % 8);
    let singles = format!("token,layer,phase,expert\n{}", (0..24).map(row).collect::<String>());
    assert!(read(&singles, &said(true)).is_ok());
    let report = warned(&cut(&singles));
    assert!(
        report.contains("line 22: token 5 has 1 of 2 experts in layer 1: an engine dropped experts, or"),
        "{report}"
    );

    let line =
        |token: u32, experts: &str| format!("{{\"token\":{token},\"layer\":0,\"phase\":1,\"experts\":{experts}}}\n");
    let report = warned(&(line(0, "[1,2]") + &line(1, "[3]")));
    assert!(report.contains("line 2: token 1 has 1 of 2 experts in layer 0"), "{report}");
    let empty = line(0, "[1,2]") + &line(1, "[3,null]") + &line(2, "[]") + &line(3, "[-1,-1]");
    assert!(read(&empty, &said(true)).is_ok(), "slots that are said to be empty are no holes");
}

#[test]
fn exports_of_traces_with_empty_cells_have_no_holes() {
    let text = "token,layer,stack,phase,expert_0,expert_1\n0,0,encoder,prefill,1,2\n1,0,decoder,decode,3,\n";
    let trace: MemoryTrace = read(text, &said(true)).unwrap();
    assert_eq!(trace.sequences()[0].experts[..4], [1, 2, EMPTY_SLOT, EMPTY_SLOT]);
    let folder = tempfile::tempdir().unwrap();
    for format in ["csv", "jsonl"] {
        let path = folder.path().join(format);
        exporter(format).unwrap().write(&trace, &path, &|_| {}).unwrap();
        assert_eq!(moe_trace::import(&path, &said(true)).unwrap().sequences(), trace.sequences(), "{format}");
    }
}

#[test]
fn two_requests_without_a_column_are_refused_with_the_columns_that_could_be_it() {
    let row = |request: &str, token: u32| format!("{request},en,{token},0,{token},7\n");
    let rows: String = ["a", "b"].iter().flat_map(|request| (0..3).map(move |token| row(request, token))).collect();
    let message = failure(format!("conversation,language,token,layer,expert_0,expert_1\n{rows}"), &said(false));
    let expected = "f, line 5: token is 0, it came before in line 2 in layer 0: if it is a token of another request, name the \
                    column of requests (--column sequence=NAME; not used are conversation, language); if token counts";
    assert!(message.starts_with(expected), "{message}");
    let lines = "{\"chat\":1,\"token\":0,\"layer\":0,\"expert\":1}\n{\"chat\":1,\"token\":1,\"layer\":0,\"expert\":1}\n\
                 {\"chat\":2,\"token\":0,\"layer\":0,\"expert\":2}\n";
    let message = failure(lines, &said(false));
    assert!(message.contains("(--column sequence=NAME; not used are chat)"), "{message}");
    let known = "sequence,token,layer,expert_0,expert_1\n0,0,0,1,2\n0,0,0,3,4\n";
    assert!(!failure(known, &said(false)).contains("sequence=NAME"), "the column is there");
}

#[test]
fn an_expert_that_stands_twice_is_told() {
    let message = failure("{\"token\":0,\"layer\":1,\"experts\":[3,3]}\n", &said(false));
    let expected = "f, line 1: expert is 3, it stands twice among the experts of token 0 in layer 1: a router chooses an \
                    expert once; if the id marks an empty slot, give --empty-id 3";
    assert_eq!(message, expected);
}
