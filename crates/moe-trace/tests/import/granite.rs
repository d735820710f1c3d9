use moe_trace::{DomainId, EMPTY_SLOT, ImportOptions, LayerId, Phase, RoutingSource, detect_importer, import};

use crate::{failure, read, real};

const FILE: &str = r#"{"model": "tiny", "num_layers": 2, "num_experts": 4, "top_k": 2, "extra": [1, {}], "prompts": {
    "zebra": {"prompt_len": 1, "prefill": [[[3, 1], [0, 2]]], "decode": [[[0, 2], [1]]], "text": "x"},
    "ant": {"prefill": [], "decode": [[[1, 2], [3, 0]]]}}}"#;

#[test]
fn prompts_become_sequences_and_domains_in_the_order_of_the_file() {
    let trace = read(FILE, &ImportOptions::default()).unwrap();
    assert_eq!((trace.domains(), trace.model()), (&["zebra".to_owned(), "ant".to_owned()][..], Some("tiny")));
    let [zebra, ant] = trace.sequences() else { panic!("two prompts") };
    assert_eq!(zebra.experts, [3, 1, 0, 2, 0, 2, 1, EMPTY_SLOT]);
    assert_eq!((&zebra.phases[..], zebra.domain), (&[0, 1][..], Some(DomainId(0))));
    assert_eq!((&ant.phases[..], ant.domain), (&[1][..], Some(DomainId(1))));
    let named = ImportOptions { model: Some("other".into()), ..ImportOptions::default() };
    assert_eq!(read(FILE, &named).unwrap().model(), Some("other"));
}

#[test]
fn errors_name_prompt_value_and_limit() {
    let changed = |from: &str, to: &str| failure(FILE.replacen(from, to, 1), &ImportOptions::default());
    assert_eq!(
        changed("\"prompt_len\": 1", "\"prompt_len\": 2"),
        "f, prompt \"zebra\": prompt_len is 2, prefill has 1 tokens"
    );
    assert_eq!(
        changed("\"num_layers\": 2", "\"num_layers\": 3"),
        "f, prompt \"zebra\": prefill is 2 layers at token 0, expected 3"
    );
    assert_eq!(
        changed("[1]]", "[1, 2, 3]]"),
        "f, prompt \"zebra\": decode is 3 ids at token 0, layer 1, expected at most 2"
    );
    assert_eq!(
        changed("\"top_k\": 2", "\"top_k\": 5"),
        "f: the file does not make a trace: top_k is 5, allowed are 1..=4"
    );
    assert_eq!(
        changed("[3, 1]", "[3, 4]"),
        "f, prompt \"zebra\": prefill is 4 at token 0, layer 0, there are 4 experts; 4 often marks an empty slot: then give \
         --empty-id 4"
    );
    assert_eq!(
        changed("[3, 1]", "[3, 3]"),
        "f: invalid sequence: sequence 0, token 0, layer 0: expert 3 appears twice"
    );
    assert_eq!(changed("ant", "zebra"), "f, prompt \"zebra\": name is another prompt's, expected each name once");
    for (from, to, expected) in [
        ("[3, 1]", "[3, 1e3]", "invalid type: floating point `1000.0`, expected i64 at line 2"),
        ("[3, 1]", "3", "invalid type: integer `3`, expected the experts of a layer at line 2"),
        ("\"top_k\"", "\"k\"", "missing field `top_k`"),
        ("}}}", "}}", "EOF while parsing"),
    ] {
        let message = changed(from, to);
        assert!(message.starts_with("f: not a readable JSON file: ") && message.contains(expected), "{message}");
    }
    let options = ImportOptions { experts: Some(5), ..ImportOptions::default() };
    assert_eq!(failure(FILE, &options), "f, document: num_experts is 4, the options say 5");
    let claim = r#"{"num_layers": 1, "num_experts": 60000, "top_k": 60000, "prompts": {"a": {"decode": [[[]]]}}}"#;
    let claim = failure(claim, &ImportOptions::default());
    assert_eq!(claim, "f, prompt \"a\": decode is 0 ids in 1 cells, top_k is 60000");
}

#[test]
fn the_real_capture_is_read() {
    let Some(path) = real("granite-1b/moe_expert_trace.json") else { return };
    assert_eq!(detect_importer(&path).unwrap().name(), "granite-json");
    let trace = import(&path, &ImportOptions::default()).unwrap();
    let geometry = trace.geometry();
    assert_eq!((geometry.layers(), geometry.experts(), geometry.top_k()), (24, 32, 8));
    assert_eq!(trace.domains(), ["english_prose", "code", "math"]);
    let prompts: Vec<(usize, usize)> = (0..3)
        .map(|index| {
            let sequence = trace.sequence(index).unwrap();
            (sequence.len(), (0..sequence.len()).filter(|&token| sequence.phase(token) == Phase::Prefill).count())
        })
        .collect();
    assert_eq!(prompts, [(103, 39), (108, 44), (93, 29)]);
    let sequence = trace.sequence(0).unwrap();
    assert_eq!(sequence.experts(0, LayerId(0)).map(|e| e.0).collect::<Vec<_>>(), [7, 28, 31, 21, 25, 6, 17, 0]);
}
