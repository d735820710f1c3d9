//! What had to be inferred is said, kept with the trace, and an error where the user wants it so.

use moe_trace::{
    ImportOptions, ImportReport, MemoryTrace, Phase, RoutingSource, ShardedWriter, Stack, TraceView, WarningKind,
    write_trace,
};

use crate::{failure, read};

/// Two layers of 4 experts, 8 tokens; layer 1 has no id but 0.
fn rows(last: &str) -> String {
    let row = |token: u32| format!("{token},0,{}\n{token},1,0\n", token % 4);
    ["token,layer,expert\n".to_owned()].into_iter().chain((0..8).map(row)).collect::<String>() + last
}

fn kinds(report: &ImportReport) -> Vec<&str> {
    report.warnings().iter().map(|warning| warning.kind.name()).collect()
}

#[test]
fn what_is_inferred_is_said_with_its_place_and_its_option() {
    let trace = read(rows(""), &ImportOptions::default()).unwrap();
    let lines = "f, line 2: the phase is missing, the token is taken as prefilled (16 times); --token-phase says which it is\n\
        f, line 8: the number of experts is taken to be 4, from the largest id 3; --experts or --config says otherwise\n\
        f: no id but 0 in layers 1 of the model: dense layers have no experts; --config says which layers have experts\n";
    assert_eq!(trace.import_report().to_string(), lines);

    let known = ImportOptions { experts: Some(4), phase: Some(Phase::Decode), ..ImportOptions::default() };
    assert_eq!(kinds(read(rows(""), &known).unwrap().import_report()), ["idle-layers"]);
    let prefilled = ImportOptions { phase: Some(Phase::Prefill), ..known.clone() };
    assert_eq!(kinds(read(rows(""), &prefilled).unwrap().import_report()), ["no-decoded-tokens", "idle-layers"]);
    let strict = ImportOptions { strict: true, ..known };
    assert_eq!(
        failure(rows(""), &strict),
        "f: no id but 0 in layers 1 of the model: dense layers have no experts; --config says which layers have \
         experts; warnings are errors here"
    );
    assert!(read(rows("").replace(",1,0\n", ",1,2\n"), &strict).unwrap().import_report().is_empty());
}

#[test]
fn an_id_that_looks_like_an_empty_slot_is_said() {
    let options = |experts, empty: &[i64]| ImportOptions {
        experts,
        empty_ids: empty.to_vec(),
        phase: Some(Phase::Decode),
        ..ImportOptions::default()
    };
    let marked = rows("8,1,1\n8,0,255\n");
    let report = read(&marked, &options(None, &[])).unwrap().import_report().clone();
    assert_eq!(kinds(&report), ["empty-id-suspected", "experts-inferred"]);
    assert!(report.to_string().starts_with("f, line 19: id 255 stands far above all others (the next largest is 3)"));
    assert_eq!(
        failure(&marked, &options(Some(4), &[])),
        "f, line 19: expert is 255, there are 4 experts; 255 often marks an empty slot: then give --empty-id 255, or \
         give --experts if there are more"
    );
    let trace = read(&marked, &options(Some(4), &[255])).unwrap();
    assert_eq!(trace.sequences()[0].experts[16..], [moe_trace::EMPTY_SLOT, 1]);
    assert!(trace.import_report().is_empty());
    // Many experts, of which 255 happens to be the last: no suspicion.
    let many: String = (0..256).map(|id| format!("{id},0,{id}\n")).collect();
    let report = read(format!("token,layer,expert\n{many}"), &options(None, &[])).unwrap().import_report().clone();
    assert_eq!(kinds(&report), ["experts-inferred"]);
}

#[test]
fn the_most_experts_of_a_token_are_said_where_others_use_fewer() {
    let options =
        |top_k| ImportOptions { experts: Some(4), top_k, phase: Some(Phase::Decode), ..ImportOptions::default() };
    let uneven = "token,layer,expert\n0,0,3\n1,0,1\n1,0,2\n";
    let report = read(uneven, &options(None)).unwrap().import_report().clone();
    let expected = "f, line 3: top-k is taken to be 2, the most experts of a token in a layer; --top-k or --config says otherwise\n";
    assert!(report.to_string().starts_with(expected), "{report}");
    let known = read(uneven, &options(Some(2))).unwrap().import_report().clone();
    assert!(!known.has(&WarningKind::TOP_K_INFERRED) && known.has(&WarningKind::SLOTS_MISSING), "{known}");
    assert_eq!(
        failure(uneven, &options(Some(1))),
        "f, line 3: number of experts is 2, top-k is 1: give --top-k 2 or more, or, if token counts within a forward pass, name \
         the column that counts passes (--column step=NAME)"
    );
}

#[test]
fn warnings_stay_with_the_trace() {
    let trace = read(rows(""), &ImportOptions::default()).unwrap();
    let report = trace.import_report();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.safetensors");
    write_trace(&file, &trace).unwrap();
    let opened = moe_trace::open(&file).unwrap();
    assert_eq!(opened.import_report(), report);
    let part = TraceView::new(opened, &moe_trace::Selection::default()).unwrap();
    assert_eq!(MemoryTrace::from_source(&part).unwrap().import_report(), report);
    let twice = moe_trace::Concatenation::new(vec![&trace, &trace]).unwrap();
    assert_eq!(twice.import_report().warnings()[0].count, 2 * report.warnings()[0].count);

    let shards = folder.path().join("shards");
    let mut writer = ShardedWriter::create(&shards, trace.geometry().clone(), &[], None, 1).unwrap();
    writer.push(&trace.sequences()[0]).unwrap();
    writer.add_import_report(report);
    writer.finish().unwrap();
    assert_eq!(moe_trace::open(&shards).unwrap().import_report(), report);
    ShardedWriter::append(&shards, 1).unwrap().finish().unwrap();
    assert_eq!(moe_trace::open(&shards).unwrap().import_report(), report);
    assert!(report.has(&WarningKind::EXPERTS_INFERRED));
}

#[test]
fn a_sequence_of_equal_tokens_may_be_a_warm_up() {
    let sequence = |name: &str, equal: bool| -> String {
        (0..16).map(|token| format!("{name},{token},0,{}\n", if equal { 2 } else { token % 4 })).collect()
    };
    let text = format!("seq,token,layer,expert\n{}{}", sequence("a", false), sequence("b", true));
    let report = read(&text, &ImportOptions::default()).unwrap().import_report().to_string();
    assert!(
        report.contains("f: all tokens of 1 sequences, the first is sequence 1, have the same experts"),
        "{report}"
    );
    let other = read(text.replace("b,15,0,2", "b,15,0,3"), &ImportOptions::default()).unwrap();
    assert!(!other.import_report().has(&WarningKind::WARM_UP_SUSPECTED));
}

#[test]
fn a_file_without_a_token_is_refused() {
    assert_eq!(
        failure("token,layer,expert\n", &ImportOptions::default()),
        "f: no token of a routed sequence in 19 bytes, read as csv"
    );
}

#[test]
fn options_that_the_file_makes_void_are_refused() {
    let options = |phase, stack| ImportOptions { experts: Some(4), phase, stack, ..ImportOptions::default() };
    let (decode, encoder) = (Some(Phase::Decode), Some(Stack::Encoder));
    let rows = |second: &str| format!("token,layer,stack,phase,expert\n0,0,decoder,prefill,1\n1,0,{second},2\n");
    let told = rows("decoder,decode");
    assert_eq!(
        failure(&told, &options(decode, None)),
        "f: a file that says the phase of every token (moescope trace convert --decode-from changes phases) does not use \
         --token-phase: leave it out"
    );
    assert_eq!(
        failure(&told, &options(None, encoder)),
        "f: a file that says the stack of every layer does not use --stack: leave it out"
    );
    // One token without a phase is enough to use the option.
    let trace = read(rows("decoder,"), &options(decode, None)).unwrap();
    assert_eq!(trace.sequences()[0].phases, [0, 1]);
    let trace = read("token,layer,expert\n0,0,1\n", &options(None, encoder)).unwrap();
    assert_eq!(trace.geometry().moe_layers()[0].stack, Stack::Encoder);
}
