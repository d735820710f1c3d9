//! Files that say one thing twice, and runs that append to one file.

use moe_trace::{ImportOptions, MemoryTrace, Phase, RoutingSource, WarningKind};

use crate::{failure, read};

fn plain(text: impl AsRef<[u8]>) -> MemoryTrace {
    read(text, &ImportOptions::default()).unwrap()
}

fn refused(text: impl AsRef<[u8]>) -> String {
    failure(text, &ImportOptions::default())
}

fn named(column: &str, name: &str) -> ImportOptions {
    ImportOptions { columns: vec![(column.to_owned(), name.to_owned())], ..ImportOptions::default() }
}

#[test]
fn numbered_columns_are_slots_from_0_or_1_without_a_gap() {
    let of_0 = plain("token,layer,expert_1,expert_0\n0,0,5,4\n");
    assert_eq!((of_0.geometry().top_k(), &of_0.sequences()[0].experts[..]), (2, &[4, 5][..]));
    let rows = "token,layer,expert_2,expert_1\n0,0,5,4\n";
    let of_1 = plain(rows);
    assert_eq!(of_1.sequences(), of_0.sequences());
    let said = of_1.import_report().to_string();
    assert!(said.contains("no column expert_0: expert_1 is taken for the first slot; --top-k 2"), "{said}");
    let known = read(rows, &ImportOptions { top_k: Some(2), ..ImportOptions::default() }).unwrap();
    assert!(!known.import_report().has(&WarningKind::TOP_K_INFERRED));

    let gap = refused("token,layer,expert_0,expert_2\n0,0,4,5\n");
    let expected = "f, line 1: columns is expert_0, expert_2, expert_1 is missing: a row has all of its slots, numbered from 0 \
                    or from 1; add it, or rename the others";
    assert_eq!(gap, expected);
    let gap = refused("token,layer,expert_2,expert_3\n0,0,4,5\n");
    assert!(gap.contains("expert_1 is missing"), "{gap}");
    let weights = refused("token,layer,expert_0,expert_1,weight_0,weight_2\n0,0,4,5,0.5,0.5\n");
    assert!(weights.contains("weight_1 is missing"), "{weights}");
    let lost = failure(rows, &named("expert", "expert_1"));
    assert!(lost.starts_with("f, line 1: columns is expert_1, expert_2, the columns expert_N are the slots"), "{lost}");
}

#[test]
fn doubled_columns_and_fields_are_refused() {
    for (header, both) in [
        ("token,layer,expert,expert", "expert, expert"),
        ("token,layer,token,expert_0", "token, token"),
        ("token,layer,experts,expert_0", "experts, expert_0"),
        ("token,layer,expert_id,topk_ids", "expert_id, topk_ids"),
    ] {
        let message = refused(format!("{header}\n0,0,1,2\n"));
        assert!(message.starts_with(&format!("f, line 1: columns is {both}, ")), "{message}");
    }
    let chosen = read("token,layer,expert_id,topk_ids\n0,0,1,2 3\n", &named("experts", "topk_ids")).unwrap();
    assert_eq!(chosen.sequences()[0].experts, [2, 3]);
    for (fields, both) in [
        ("\"experts\": [1, 2], \"expert\": 3", "expert, experts"),
        ("\"experts\": [1], \"expert_0\": 3", "experts, expert_0"),
    ] {
        let message = refused(format!("{{\"token\": 0, \"layer\": 0, {fields}}}\n"));
        assert!(message.starts_with(&format!("f, line 1: fields is {both}, ")), "{message}");
    }
    let key =
        refused("{\"token\": 0, \"layer\": 0, \"experts\": [1, 2], \"experts\": [3, 4], \"phase\": \"decode\"}\n");
    assert!(key.contains("the key \"experts\" stands twice in the object"), "{key}");
    let null = plain("{\"token\": 0, \"layer\": 0, \"experts\": [1, 2], \"expert\": null}\n");
    assert_eq!(null.sequences()[0].experts, [1, 2]);
}

#[test]
fn records_of_type_meta_that_differ_are_refused() {
    let rows = |meta: &str| {
        let row = "{\"token\": 0, \"layer\": 0, \"experts\": [1, 2]}\n";
        refused(format!("{{\"type\": \"meta\", \"model\": \"a\", \"experts\": 8, \"top_k\": 2}}\n{row}{meta}\n"))
    };
    let message = rows("{\"type\": \"meta\", \"experts\": 16}");
    assert_eq!(message, "f, line 3: experts is 16, a record of type meta before says 8: import the runs apart");
    assert!(rows("{\"type\": \"meta\", \"model\": \"b\"}").contains("model is b, a record of type meta before says a"));
}

/// Rows of llama-moe-trace: these positions in two layers.
fn llama(positions: impl Iterator<Item = i64>) -> String {
    let rows = positions.flat_map(|position| [0, 1].map(|layer| (position, layer)));
    rows.map(|(position, layer)| format!("{position},{layer},{},{}\n", (position + layer).rem_euclid(7), 7)).collect()
}

#[test]
fn positions_that_go_back_begin_another_sequence() {
    let lengths = |text: &str| {
        let trace = plain(text);
        (0..trace.len()).map(|index| trace.sequence_len(index).unwrap()).collect::<Vec<usize>>()
    };
    assert_eq!(lengths(&(llama(0..10) + &llama(0..12))), [10, 12]);
    assert_eq!(lengths(&(llama(0..10) + &llama(4..8))), [10, 4], "a prefix that was computed before");
    assert_eq!(lengths(&(llama(-3..5) + &llama(-2..4))), [8, 6]);
    let by_layer: String =
        (0..2).flat_map(|layer| (0..5).map(move |position| format!("{position},{layer},{position},7\n"))).collect();
    assert_eq!(lengths(&by_layer), [5]);
    let together = refused("9,0,1,2\n3,0,1,2\n9,1,1,2\n3,1,1,2\n");
    assert!(together.starts_with("f, line 2: pos is 3, the token before it is at 9"), "{together}");
}

/// The log of one run: a prompt of two tokens and `steps` decode steps of request `r` in two layers.
fn run(meta: &str, steps: usize, rank: &str) -> String {
    let mut text = format!("{{\"type\": \"meta\", {meta}}}\n");
    for pass in 0..=steps {
        let tokens = if pass == 0 { 2 } else { 1 };
        for (layer, token) in (0..2).flat_map(|layer| (0..tokens).map(move |token| (layer, token))) {
            let ids = [(pass + token + layer) % 3, 3 + pass % 3];
            text += &format!(
                "{{\"type\": \"route\", \"req_id\": \"r\", \"token_idx\": {token}, \"layer\": {layer}, \"topk_ids\": {ids:?}{rank}}}\n"
            );
        }
    }
    text
}

#[test]
fn a_run_that_appends_to_a_log_has_requests_of_its_own() {
    let meta = "\"model_id\": \"tiny\", \"num_experts\": 8, \"top_k\": 2";
    let trace = plain(run(meta, 3, "") + &run(meta, 1, ""));
    let phases: Vec<&[u8]> = trace.sequences().iter().map(|sequence| &sequence.phases[..]).collect();
    assert_eq!(phases, [&[0, 0, 1, 1, 1][..], &[0, 0, 1][..]]);
    assert_eq!((trace.geometry().experts(), Phase::ALL[1].code()), (8, 1));
    // Files of two ranks, one behind the other, are one run.
    let ranks = plain(run(meta, 3, ", \"rank\": 0") + &run(meta, 3, ", \"rank\": 1"));
    assert_eq!((ranks.len(), ranks.sequences()), (1, &trace.sequences()[..1]));
    for (other, expected) in [
        ("\"model_id\": \"other\"", "model_id is other, a record of type meta before says tiny: import the runs apart"),
        ("\"num_experts\": 16", "num_experts is 16, a record of type meta before says 8"),
        ("\"top_k\": 4", "top_k is 4, a record of type meta before says 2"),
    ] {
        let message = refused(run(meta, 1, "") + &run(other, 1, ""));
        assert!(message.starts_with("f, line 8: ") && message.contains(expected), "{message}");
    }
}

#[test]
fn a_second_preamble_is_refused() {
    let run = "# route_trace v1\n# model=a n_expert=8 n_expert_used=1\n# layer=0 expert_bytes=1\n\
               turn,phase,step,layer,slot,expert\n0,1,0,0,0,3\n";
    assert_eq!(plain(run).len(), 1);
    let message = refused(format!("{run}{run}"));
    assert!(message.starts_with("f, line 9: turn is turn, "), "{message}");
}
