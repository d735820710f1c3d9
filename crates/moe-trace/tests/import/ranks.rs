//! Rows of several processes.

use moe_trace::{EMPTY_SLOT, ImportOptions, MemoryTrace, RoutingSource, WarningKind};

use crate::{failure, read};

fn columns(columns: &[(&str, &str)]) -> ImportOptions {
    let columns = columns.iter().map(|&(column, name)| (column.to_owned(), name.to_owned())).collect();
    ImportOptions { columns, ..ImportOptions::default() }
}

fn plain(text: impl AsRef<[u8]>) -> MemoryTrace {
    read(text, &ImportOptions::default()).unwrap()
}

/// Four ranks hold four experts each; a token and layer has a row of each rank that holds some of its experts.
fn expert_parallel() -> (String, Vec<u16>) {
    let (mut text, mut experts) = (String::new(), Vec::new());
    for (token, layer) in (0..12).flat_map(|token| [0, 1].map(|layer| (token, layer))) {
        let chosen = [(token * 5 + layer) % 16, (token * 3 + 7 * layer + 9) % 16];
        let chosen = if chosen[0] == chosen[1] { [chosen[0], (chosen[0] + 1) % 16] } else { chosen };
        for rank in 0..4 {
            let held: Vec<u16> = chosen.into_iter().filter(|id| id / 4 == rank).collect();
            if !held.is_empty() {
                text +=
                    &format!("{{\"rank\": {rank}, \"token\": {token}, \"layer\": {layer}, \"experts\": {held:?}}}\n");
            }
        }
        let mut chosen = chosen;
        chosen.sort_by_key(|id| id / 4);
        experts.extend(chosen);
    }
    (text, experts)
}

#[test]
fn parts_of_expert_parallel_ranks_make_one_token() {
    let (text, experts) = expert_parallel();
    let trace = plain(&text);
    assert_eq!((trace.geometry().top_k(), trace.len()), (2, 1));
    assert_eq!(trace.sequences()[0].experts, experts);
    assert!(trace.import_report().has(&WarningKind::RANKS_JOINED));
    let few = ImportOptions { top_k: Some(1), ..ImportOptions::default() };
    assert!(failure(&text, &few).contains("number of experts is 2, top-k is 1"));
}

#[test]
fn a_rank_is_a_slot_only_if_it_is_said() {
    let rows = "token,layer,rank,expert\n0,0,1,3\n0,0,2,1\n1,0,1,2\n1,0,2,0\n";
    assert_eq!(plain(rows).sequences()[0].experts, [3, 1, 2, 0]);
    let slots = read(rows, &columns(&[("slot", "rank")])).unwrap();
    assert_eq!(slots.sequences()[0].experts, [EMPTY_SLOT, 3, 1, EMPTY_SLOT, 2, 0]);
    assert!(!slots.import_report().has(&WarningKind::RANKS_JOINED));
}

#[test]
fn copies_of_tensor_parallel_ranks_count_once() {
    let row = |rank: u32, token: u32| format!("{rank},{token},0,\"[{}, {}]\"\n", token % 4, 4 + token % 3);
    let text: String = ["rank,token,layer,experts\n".to_owned()]
        .into_iter()
        .chain((0..6).flat_map(|token| [row(0, token), row(1, token)]))
        .collect();
    let one: String =
        ["rank,token,layer,experts\n".to_owned()].into_iter().chain((0..6).map(|token| row(0, token))).collect();
    let (both, one) = (plain(&text), plain(one));
    assert_eq!(both.sequences(), one.sequences());
    assert!(
        both.import_report().to_string().contains("6 cells (a token in a layer) have equal experts of several ranks")
    );
    assert!(!one.import_report().has(&WarningKind::RANK_COPIES));
    let changed = failure(text.replace("1,3,0,\"[3, 4]\"", "1,3,0,\"[3, 5]\""), &ImportOptions::default());
    assert_eq!(
        changed,
        "f, line 9: rank is 1, rank 0 has some of the same experts, and others (line 8): ranks have equal experts, or parts \
         without a common one; if ids count the experts of each rank, add to them the first id of the rank; if each rank \
         has requests of its own, give --column sequence=rank; if rank is the expert's slot, give --column slot=rank"
    );
    let missing = failure(text.replace("\n1,5,0", "\n,5,0"), &ImportOptions::default());
    assert_eq!(missing, "f, line 13: rank is missing, other rows have it");
}

#[test]
fn copies_without_a_rank_are_refused() {
    let rows = "token,layer,expert\n0,0,3\n0,0,1\n0,0,3\n0,0,1\n";
    let expected = "f, line 4: token is 0, it came before in line 2 in layer 0: if it is a token of another request, \
                    name the column of requests (--column sequence=NAME); if token counts within a forward pass, name \
                    the column that counts passes (--column step=NAME); if several processes write the file, name the \
                    column of their ranks (--column rank=NAME)";
    assert_eq!(failure(rows, &ImportOptions::default()), expected);
    let lists = "token,layer,experts\n0,0,3 1\n0,0,3 1\n";
    assert!(failure(lists, &ImportOptions::default()).starts_with("f, line 3: token is 0, it came before in line 2"));
}

/// The log of one request: three prompt tokens and two decode steps in two layers, written by `ranks`.
fn vllm_log(ranks: &[u32], field: bool) -> String {
    let mut text = "{\"type\": \"meta\", \"model_id\": \"tiny\", \"top_k\": 2}\n".to_owned();
    for (pass, tokens) in [(0, 3), (1, 1), (2, 1)] {
        for layer in 0..2 {
            for rank in ranks {
                for token in 0..tokens {
                    let ids = [(pass + token + layer) % 4, 4 + (pass + 2 * token) % 4];
                    let rank = if field { format!(", \"rank\": {rank}") } else { String::new() };
                    text += &format!(
                        "{{\"type\": \"route\", \"req_id\": \"r\", \"token_idx\": {token}, \"layer\": {layer}, \
                         \"topk_ids\": {ids:?}, \"topk_weights\": [0.5, 0.5]{rank}}}\n"
                    );
                }
            }
        }
    }
    text
}

#[test]
fn logs_of_several_workers_are_those_of_one() {
    let one = plain(vllm_log(&[0], true));
    assert_eq!((one.len(), &one.sequences()[0].phases[..]), (1, &[0, 0, 0, 1, 1][..]));
    let two = plain(vllm_log(&[0, 1], true));
    assert_eq!(two.sequences(), one.sequences());
    assert!(two.import_report().has(&WarningKind::RANK_COPIES) && !one.import_report().has(&WarningKind::RANK_COPIES));
    let unnamed = failure(vllm_log(&[0, 1], false), &ImportOptions::default());
    assert_eq!(
        unnamed,
        "f, line 5: token_idx is 0, it came again before its pass was through all layers: if several processes write the log, \
         keep the lines of one, or log their rank"
    );
    let text = vllm_log(&[0, 1], true);
    let line = text.lines().position(|line| line.contains("\"rank\": 1")).unwrap();
    let shorter: String =
        text.lines().enumerate().filter(|(at, _)| *at != line).map(|(_, line)| format!("{line}\n")).collect();
    assert!(failure(shorter, &ImportOptions::default()).contains("rank is 1, "));
    let other = text.replacen(
        "[0, 4], \"topk_weights\": [0.5, 0.5], \"rank\": 1",
        "[7, 4], \"topk_weights\": [0.5, 0.5], \"rank\": 1",
        1,
    );
    assert!(
        failure(other, &ImportOptions::default()).contains("rank 0 has some of the same experts, and others (line 2)")
    );
}
