//! Text formats with a row a token and layer.

use moe_trace::{DomainId, EMPTY_SLOT, ImportOptions, ModelConfig, RoutingSource, Stack, WarningKind, detect_importer};

use crate::{failure, read};

const E: u16 = EMPTY_SLOT;

/// A prompt in two micro-batches (positions begin anew), the last layer for the last token of each only; two decode steps;
/// then another prompt.
const LLAMA: &str =
    "-2,1,7,2\n-1,1,3,4\n-1,3,1,0\n-1,1,5,6\n-1,3,2,7\n0,1,0,1\n0,3,2,3\n1,1,4,5\n1,3,6,7\n-1,1,1,2\n-1,3,3,4\n";

#[test]
fn llama_moe_traces_keep_the_order_in_which_tokens_came() {
    let trace = read(LLAMA, &ImportOptions::default()).unwrap();
    let layers: Vec<u32> = trace.geometry().moe_layers().iter().map(|layer| layer.model_layer).collect();
    assert_eq!((layers, trace.geometry().experts(), trace.geometry().top_k()), (vec![1, 3], 8, 2));
    let [first, second] = trace.sequences() else { panic!("two prompts") };
    assert_eq!(first.experts, [7, 2, E, E, 3, 4, 1, 0, 5, 6, 2, 7, 0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(first.phases, [0, 0, 0, 1, 1]);
    assert_eq!((&second.experts[..], &second.phases[..]), (&[1, 2, 3, 4][..], &[0][..]));
    let options = ImportOptions { experts: Some(64), top_k: Some(4), ..ImportOptions::default() };
    let wide = read(LLAMA, &options).unwrap();
    assert_eq!((wide.geometry().experts(), wide.geometry().top_k()), (64, 4));

    let message = |text: &str| failure(text, &ImportOptions::default());
    assert_eq!(message("-1,1,7,2\n-1,1,x,2\n"), "f, line 2: id is x, expected a whole number in range");
    assert_eq!(message("-1,1,7,2\n0,-1,3,2\n"), "f, line 2: layer is -1, expected a whole number in range");
    assert_eq!(message("-1,1,7,2\n0,1\n"), "f, line 2: row is without ids, expected pos,layer,id0,...");
    assert_eq!(
        message("-1,1,65535,2\n"),
        "f, line 1: id is 65535, expected an expert below 65535: give --empty-id 65535 if it marks an empty slot, a -1 in an \
         unsigned number"
    );
    assert_eq!(message("-1,1,7,7\n"), "f, line 1: pos is -1, an id comes twice in this row");
    let few = ImportOptions { experts: Some(4), ..ImportOptions::default() };
    assert_eq!(failure(LLAMA, &few), "f, line 1: expert is 7, there are 4 experts: give --experts if there are more");
}

const VLLM: &str = r#"{"type": "meta", "model_id": "tiny", "vllm_version": "0.15.1", "layers_logged": [0, 2], "top_k": 2}
{"type": "route", "req_id": "r1", "token_idx": 0, "layer": 0, "topk_ids": [4, 5], "topk_weights": [0.75, 0.25]}
{"type": "route", "req_id": "r1", "token_idx": 1, "layer": 0, "topk_ids": [6, 7], "topk_weights": [0.5, 0.5]}
{"type": "route", "req_id": "r1", "token_idx": 0, "layer": 2, "topk_ids": [0, 1], "topk_weights": [0.5, 0.5]}
{"type": "route", "req_id": "r1", "token_idx": 1, "layer": 2, "topk_ids": [2, 3], "topk_weights": [0.5, 0.5]}
{"type": "route", "req_id": 2, "token_idx": 0, "layer": 0, "topk_ids": [1, 2], "topk_weights": [0.5, 0.5]}
{"type": "route", "req_id": "r1", "token_idx": 0, "layer": 0, "topk_ids": [3, 4], "topk_weights": [0.5, 0.5]}
{"type": "note", "anything": [1]}
{"type": "route", "req_id": "r1", "token_idx": 0, "layer": 2, "topk_ids": [5, 6], "topk_weights": [0.5, 0.5]}
"#;

#[test]
fn vllm_logs_put_passes_together() {
    let trace = read(VLLM, &ImportOptions::default()).unwrap();
    let layers: Vec<u32> = trace.geometry().moe_layers().iter().map(|layer| layer.model_layer).collect();
    assert_eq!((layers, trace.model(), trace.geometry().experts()), (vec![0, 2], Some("tiny"), 8));
    let [first, second] = trace.sequences() else { panic!("two requests") };
    assert_eq!(first.experts, [4, 5, 0, 1, 6, 7, 2, 3, 3, 4, 5, 6]);
    assert_eq!((&first.phases[..], first.weights.as_deref().unwrap()[0]), (&[0, 0, 1][..], 0.75));
    assert_eq!(second.experts, [1, 2, E, E]);

    let changed = |from: &str, to: &str| failure(VLLM.replacen(from, to, 1), &ImportOptions::default());
    assert_eq!(
        changed("[4, 5], \"topk_weights\": [0.75, 0.25]", "[4, 5], \"topk_weights\": [0.75]"),
        "f, line 2: topk_weights is 1 numbers, there are 2 topk_ids"
    );
    let wide = changed("[4, 5]", "[4, 70000]");
    assert_eq!(wide, "f, line 2: topk_ids is 70000, expected an expert below 65535");
    let cut = failure(&VLLM[..VLLM.len() - 20], &ImportOptions::default());
    assert!(cut.starts_with("f, line 9: record is ") && cut.contains("EOF while parsing"), "{cut}");
}

const CSV: &str = "# a comment\nseq_id;pos;layer;stack;expert_0;expert_1;weight_0;weight_1;phase;domain;token_id\n\
    a;0;1;decoder;3;1;0.75;0.25;prefill;code;17\n\
    a;0;0;encoder;2;;1;;prefill;code;17\n\
    a;1;0;encoder;0;1;0.5;0.5;decode;code;18\n\
    b;0;1;decoder;2;3;0.5;0.5;1;;19\n";

#[test]
fn delimited_text_is_read_by_the_names_of_its_columns() {
    let trace = read(CSV, &ImportOptions::default()).unwrap();
    let stacks: Vec<Stack> = trace.geometry().moe_layers().iter().map(|layer| layer.stack).collect();
    assert_eq!((stacks, trace.geometry().experts()), (vec![Stack::Encoder, Stack::Decoder], 4));
    let [a, b] = trace.sequences() else { panic!("two sequences") };
    assert_eq!(a.experts, [2, E, 3, 1, 0, 1, E, E]);
    assert_eq!(a.weights.as_deref(), Some(&[1.0, 0.0, 0.75, 0.25, 0.5, 0.5, 0.0, 0.0][..]));
    assert_eq!(
        (&a.phases[..], a.domain, a.token_ids.as_deref()),
        (&[0, 1][..], Some(DomainId(0)), Some(&[17, 18][..]))
    );
    assert_eq!((&b.phases[..], b.domain, trace.domains()), (&[1][..], None, &["code".to_owned()][..]));
}

#[test]
fn long_tables_and_lists_are_read_too() {
    let long = "token,layer,expert,weight\n0,0,3,0.5\n0,0,1,0.5\n1,0,2,1.0\n";
    let trace = read(long, &ImportOptions::default()).unwrap();
    assert_eq!((trace.sequences()[0].experts.clone(), trace.geometry().top_k()), (vec![3, 1, 2, E], 2));
    let ranked = "token\tlayer\trank\texpert\n0\t0\t1\t3\n0\t0\t0\t1\n";
    assert_eq!(read(ranked, &ImportOptions::default()).unwrap().sequences()[0].experts, [1, 3]);
    let lists = "token,layer,experts,weights\n0,0,\"[3, 1]\",0.75|0.25\n1,0,2 0,0.5 0.5\n";
    let trace = read(lists, &ImportOptions::default()).unwrap();
    assert_eq!(trace.sequences()[0].experts, [3, 1, 2, 0]);
    assert_eq!(trace.sequences()[0].weights.as_deref(), Some(&[0.75, 0.25, 0.5, 0.5][..]));
    let named = ImportOptions { columns: vec![("expert".into(), "weight".into())], ..ImportOptions::default() };
    let odd = "token,layer,expert,weight\n0,0,x,7\n";
    assert_eq!(read(odd, &named).unwrap().sequences()[0].experts, [7]);
}

#[test]
fn errors_in_tables_name_line_column_and_value() {
    let changed = |from: &str, to: &str| failure(CSV.replacen(from, to, 1), &ImportOptions::default());
    assert_eq!(changed("a;0;1", "a;x;1"), "f, line 3: pos is x, expected a token's number");
    assert_eq!(changed("decoder;3;1", "decoder;3;z"), "f, line 3: expert_1 is z, expected an expert below 65535");
    assert_eq!(changed("decoder;3", "top;3"), "f, line 3: stack is top, expected encoder or decoder");
    assert_eq!(changed("0.75", "inf"), "f, line 3: weight_0 is inf, expected a finite number");
    assert_eq!(changed(";decode;", ";both;"), "f, line 5: phase is both, expected prefill, decode, 0 or 1");
    assert_eq!(
        changed("a;1;0;encoder", "a;0;0;decoder"),
        "f, line 5: phase is another, expected that of the token's first row"
    );
    let again = format!("{CSV}a;5;0;encoder;0;1;0.5;0.5;decode;code;18\n");
    assert_eq!(
        failure(again, &ImportOptions::default()),
        "f, line 7: sequence is a, its rows must follow each other: sort the file by sequence"
    );
    assert_eq!(
        changed("prefill;code;17", "prefill;prose;17"),
        "f, line 4: domain is code, expected that of the sequence's first row"
    );
    let cell = "token,layer,expert\n0,0,3\n0,1,1\n0,0,2\n";
    let message = failure(cell, &ImportOptions::default());
    assert!(
        message.starts_with("f, line 4: token is 0, it came before in line 2 in layer 0: if it is a token of another"),
        "{message}"
    );
    let missing = ImportOptions { columns: vec![("layer".into(), "block".into())], ..ImportOptions::default() };
    assert!(failure(CSV, &missing).ends_with("expected a column block"));
}

/// A model of four layers, of which the first two are dense.
fn config() -> ModelConfig {
    let text = r#"{"model_type": "deepseek_v2", "num_hidden_layers": 4, "n_routed_experts": 4, "num_experts_per_tok": 1,
        "first_k_dense_replace": 2, "moe_layer_freq": 1}"#;
    ModelConfig::parse("c".as_ref(), text.as_bytes()).unwrap()
}

#[test]
fn layers_are_those_of_the_configuration() {
    let options = ImportOptions { config: Some(config()), ..ImportOptions::default() };
    let layers = |rows: &str| {
        let trace = read(format!("token,layer,expert\n{rows}"), &options).unwrap();
        let layers = trace.geometry().moe_layers().iter().map(|layer| layer.model_layer).collect::<Vec<_>>();
        (layers, trace.import_report().clone())
    };
    let (model, report) = layers("0,2,1\n0,3,2\n");
    assert!(!report.has(&WarningKind::LAYERS_RENUMBERED) && !report.has(&WarningKind::LAYERS_MISSING));
    assert_eq!(model, [2, 3]);
    let (counted, report) = layers("0,0,1\n0,1,2\n");
    assert_eq!((counted, report.has(&WarningKind::LAYERS_RENUMBERED)), (vec![2, 3], true));
    let (part, report) = layers("0,3,1\n");
    assert_eq!((part, report.has(&WarningKind::LAYERS_MISSING)), (vec![3], true));
    assert_eq!(
        failure("token,layer,expert\n0,1,1\n0,2,1\n", &options),
        "f, layers: layer is 1, the configuration has experts in layers [2, 3]"
    );
    let llama = read("-1,0,1\n-1,1,2\n", &options).unwrap();
    assert_eq!(llama.geometry().moe_layers()[0].model_layer, 2);
}

const JSONL: &str = r#"{"type": "meta", "model": "tiny", "experts": 16, "top_k": 3}
{"sequence": 0, "token": 0, "layer": 0, "experts": [3, null, 1], "weights": [0.5, null, 0.25], "phase": "decode", "domain": "code", "token_id": 7, "prediction": 9}
{"sequence": 0, "token": 1, "layer": 0, "experts": [15], "weights": [1], "phase": "decode", "domain": "code", "token_id": 9, "prediction": 1}
"#;

#[test]
fn json_lines_are_read_by_the_names_of_their_fields() {
    let trace = read(JSONL, &ImportOptions::default()).unwrap();
    assert_eq!((trace.geometry().experts(), trace.geometry().top_k(), trace.model()), (16, 3, Some("tiny")));
    let sequence = &trace.sequences()[0];
    assert_eq!(sequence.experts, [3, E, 1, 15, E, E]);
    assert_eq!(sequence.weights.as_deref(), Some(&[0.5, 0.0, 0.25, 1.0, 0.0, 0.0][..]));
    assert_eq!(
        (sequence.token_ids.as_deref(), sequence.predictions.as_deref()),
        (Some(&[7, 9][..]), Some(&[9, 1][..]))
    );

    let changed = |from: &str, to: &str| failure(JSONL.replacen(from, to, 1), &ImportOptions::default());
    assert_eq!(
        changed("\"token\": 1", "\"token\": \"x\""),
        "f, line 3: token is \"x\", expected a whole number in range"
    );
    assert_eq!(changed("\"token\": 1", "\"t\": 1"), "f, line 3: token is missing, expected a number");
    assert_eq!(changed("[15]", "[99999]"), "f, line 3: expert is 99999, expected an expert below 65535");
    assert_eq!(
        changed("[15]", "[16]"),
        "f, line 3: expert is 16, there are 16 experts; 16 often marks an empty slot: then give --empty-id 16, or give \
         --experts if there are more"
    );
    assert_eq!(
        changed("\"weights\": [1]", "\"weights\": [1, 2]"),
        "f, line 3: weights is 2 numbers, there are 1 experts"
    );
    assert_eq!(
        changed("\"weights\": [1]", "\"weights\": [1e60]"),
        "f, line 3: weight is 1e+60, expected a finite number"
    );
    assert!(changed("\"layer\": 0, \"experts\": [15]", "\"layer\": 0").ends_with("expected a list of experts"));
}

/// Files written by Arrow, made by `tests/fixtures/make_fixtures.py --parquet`.
#[cfg(feature = "parquet")]
#[test]
fn parquet_is_read_by_the_names_of_its_columns() {
    let id = |token: usize, layer: usize, slot: usize, experts: usize| (token * 3 + layer * 7 + slot * 5) % experts;
    let path = crate::fixture("arrow_lists.parquet");
    assert_eq!(detect_importer(&path).unwrap().name(), "parquet");
    let trace = moe_trace::import(&path, &ImportOptions::default()).unwrap();
    assert_eq!((trace.len(), trace.geometry().layers(), trace.geometry().top_k()), (2, 2, 2));
    for (number, sequence) in trace.sequences().iter().enumerate() {
        let rows = (0..3).flat_map(|token| (0..2).map(move |layer| (token, layer)));
        let ids: Vec<usize> =
            rows.flat_map(|(token, layer)| [0, 1].map(|slot| id(token + number, layer, slot, 300))).collect();
        assert_eq!(sequence.experts.iter().map(|&id| usize::from(id)).collect::<Vec<_>>(), ids);
        assert_eq!((&sequence.phases[..], sequence.weights.as_deref().unwrap()[1]), (&[0, 0, 1][..], 0.25));
    }
    assert_eq!((trace.sequences()[0].domain, trace.sequences()[1].domain), (Some(DomainId(0)), None));
    let long = moe_trace::import(crate::fixture("arrow_long.parquet"), &ImportOptions::default()).unwrap();
    assert_eq!((long.geometry().top_k(), long.sequences()[0].phases.len()), (2, 3));
    assert_eq!(usize::from(long.sequences()[0].experts[5]), id(1, 0, 1, 16));
    assert_eq!(long.sequences()[0].weights.as_deref().unwrap(), [0.5; 12]);
    let outside = moe_trace::import(crate::fixture("negative_range.parquet"), &ImportOptions::default());
    let outside = outside.unwrap_err().to_string();
    assert!(outside.contains("row group ") && outside.contains(", the file has 4980"), "{outside}");
    let cut = std::fs::read(&path).unwrap();
    assert!(failure(&cut[..cut.len() - 9], &ImportOptions::default()).starts_with("f: not a readable Parquet file: "));
}

/// Every text format is told from the others by its content.
#[test]
fn formats_are_detected() {
    let directory = tempfile::tempdir().unwrap();
    for (content, name) in [(LLAMA, "llama-moe-trace"), (VLLM, "vllm-logger"), (CSV, "csv"), (JSONL, "jsonl")] {
        let path = directory.path().join("f");
        std::fs::write(&path, content).unwrap();
        assert_eq!(detect_importer(&path).unwrap().name(), name);
    }
}
