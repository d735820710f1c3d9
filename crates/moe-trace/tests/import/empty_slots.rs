//! Marks of empty slots: -1, what it becomes in unsigned numbers, and what else is no expert.

use moe_trace::{EMPTY_SLOT, ImportOptions, RoutingSource, WarningKind};

use crate::{failure, read};

const E: u16 = EMPTY_SLOT;

fn options(experts: Option<usize>, empty_ids: &[i64]) -> ImportOptions {
    ImportOptions { experts, empty_ids: empty_ids.to_vec(), ..ImportOptions::default() }
}

/// An array file `[2, 1, 2]` of numbers of a type.
fn npy(descr: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2, 1, 2), }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Two tokens with the experts 3, 1 and 7, and one slot of the given id, in every format that has plain ids.
fn files(id: i64) -> Vec<(&'static str, String, u64)> {
    let vllm = |token: u32, ids: &str| {
        format!("{{\"type\": \"route\", \"req_id\": 1, \"token_idx\": {token}, \"layer\": 0, \"topk_ids\": [{ids}]}}\n")
    };
    vec![
        ("csv", format!("token,layer,slot,expert\n0,0,0,3\n0,0,1,1\n1,0,0,7\n1,0,1,{id}\n"), 5),
        ("csv", format!("token,layer,expert_0,expert_1\n0,0,3,1\n1,0,7,{id}\n"), 3),
        (
            "jsonl",
            format!(
                "{{\"token\":0,\"layer\":0,\"experts\":[3,1]}}\n{{\"token\":1,\"layer\":0,\"experts\":[7,{id}]}}\n"
            ),
            2,
        ),
        ("vllm-logger", vllm(0, "3, 1") + &vllm(1, &format!("7, {id}")), 2),
        ("llama-moe-trace", format!("-2,0,3,1\n-1,0,7,{id}\n"), 2),
    ]
}

#[test]
fn marks_are_empty_slots_where_the_user_says_so() {
    for id in [-1, 255, 8, 65_535, 4_294_967_295, -7] {
        let said: &[i64] = if id == -1 { &[] } else { &[id] };
        for (format, text, _) in files(id) {
            let trace = read(&text, &options(Some(8), said)).unwrap_or_else(|error| panic!("{format}: {error}"));
            assert_eq!(trace.sequences()[0].experts, [3, 1, 7, E], "{format}, {id}");
            assert_eq!(read(&text, &options(None, said)).unwrap().geometry().experts(), 8, "{format}, {id}");
        }
    }
}

#[test]
fn marks_are_refused_where_the_number_of_experts_is_known() {
    for id in [255, 8, 65_535, 4_294_967_295, -7] {
        for (format, text, line) in files(id) {
            let message = failure(&text, &options(Some(8), &[]));
            assert!(message.starts_with(&format!("f, line {line}: ")), "{format}: {message}");
            assert!(message.contains(&format!(" is {id}, ")), "{format}: {message}");
            assert!(message.contains(&format!("give --empty-id {id}")), "{format}: {message}");
        }
    }
}

#[test]
fn marks_are_suspected_where_the_number_of_experts_is_not_known() {
    for (format, text, line) in files(255) {
        let report = read(&text, &options(None, &[])).unwrap().import_report().to_string();
        let said = format!("f, line {line}: id 255 stands far above all others (the next largest is 7)");
        assert!(report.contains(&said) && report.contains("--empty-id 255"), "{format}: {report}");
    }
    for (format, text, line) in files(8) {
        let report = read(&text, &options(None, &[])).unwrap().import_report().to_string();
        assert!(
            report.contains(&format!("f, line {line}: the largest id 8 would make 9 experts")),
            "{format}: {report}"
        );
    }
    for (_, text, _) in files(6) {
        let trace = read(&text, &options(None, &[])).unwrap();
        assert!(!trace.import_report().has(&WarningKind::EMPTY_ID_SUSPECTED));
    }
}

#[test]
fn arrays_have_the_same_marks() {
    let of = |descr: &str, id: i64| {
        let width = usize::from(descr.as_bytes()[2] - b'0');
        let data: Vec<u8> = [3, 1, 7, id].iter().flat_map(|id: &i64| id.to_le_bytes()[..width].to_vec()).collect();
        npy(descr, &data)
    };
    for (descr, id, shown) in [
        ("|u1", 255, 255),
        ("<u4", 4_294_967_295, 4_294_967_295),
        ("<u8", -1, i64::MAX),
        ("|i1", -106, -106),
        ("<i2", 8, 8),
    ] {
        let message = failure(of(descr, id), &options(Some(8), &[]));
        assert!(message.starts_with("f, array, token 1, layer 0: "), "{descr}: {message}");
        assert!(message.contains(&format!("give --empty-id {shown}")), "{descr}: {message}");
        let trace = read(of(descr, id), &options(Some(8), &[shown])).unwrap();
        assert_eq!(trace.sequences()[0].experts, [3, 1, 7, E], "{descr}");
    }
    for (descr, id) in [("|i1", -1), ("<u2", 65_535), ("<i8", -1)] {
        assert_eq!(
            read(of(descr, id), &options(Some(8), &[])).unwrap().sequences()[0].experts,
            [3, 1, 7, E],
            "{descr}"
        );
    }
    let report = read(of("|u1", 255), &options(None, &[])).unwrap().import_report().to_string();
    assert!(report.contains("f, array, token 1, layer 0: id 255 stands far above all others"), "{report}");
}

#[test]
fn what_the_user_says_must_be_what_the_file_says() {
    let meta =
        "{\"type\": \"meta\", \"experts\": 16, \"top_k\": 2}\n{\"token\": 0, \"layer\": 0, \"experts\": [3, 1]}\n";
    assert_eq!(failure(meta, &options(Some(8), &[])), "f, options: experts is 8, the file says 16");
    for top_k in [1, 3] {
        let said = ImportOptions { top_k: Some(top_k), ..ImportOptions::default() };
        let message = failure(meta, &said);
        match top_k {
            3 => assert_eq!(message, "f, options: top_k is 3, the file says 2"),
            _ => assert!(
                message.starts_with(&format!("f, line 2: number of experts is 2, top-k is {top_k}: ")),
                "{message}"
            ),
        }
        let array = npy("|u1", &[3, 1, 7, 2]);
        assert_eq!(failure(array, &said), format!("f, options: top_k is {top_k}, the file says 2"));
    }
    let zero = ImportOptions { top_k: Some(0), ..ImportOptions::default() };
    assert_eq!(failure("token,layer,expert\n0,0,1\n", &zero), "--top-k is 0, allowed are 1..=65535");
}

#[test]
fn an_id_that_stands_far_above_all_others_is_suspected() {
    let report = |second: u32, lone: u32| {
        let text = format!("token,layer,phase,expert\n0,0,decode,{second}\n1,0,decode,{lone}\n");
        read(text, &ImportOptions::default()).unwrap().import_report().clone()
    };
    for (second, lone) in [(31, 99), (127, 255), (159, 255), (63, 128)] {
        let report = report(second, lone);
        assert!(report.has(&WarningKind::EMPTY_ID_SUSPECTED), "{lone} above {second}: {report}");
    }
    for (second, id) in [(254, 255), (60, 99), (3, 31)] {
        let report = report(second, id);
        assert!(!report.has(&WarningKind::EMPTY_ID_SUSPECTED), "{id} above {second}: {report}");
    }
}
