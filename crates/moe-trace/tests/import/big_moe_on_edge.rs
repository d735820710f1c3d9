use moe_trace::{EMPTY_SLOT, ImportOptions, LayerId, Phase, RoutingSource, detect_importer, import};

use crate::{failure, read, real};

const HEAD: &str = "# route_trace v1\n# model=my model.gguf arch=x n_layer=3 n_expert=8 n_expert_used=2\n\
    # layer=0 expert_bytes=0 dense_bytes=10\n# layer=1 expert_bytes=5 dense_bytes=10\n\
    # layer=2 expert_bytes=5 dense_bytes=10\n";
const NAMES: &str = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n";

fn file(rows: &str) -> String {
    format!("{HEAD}{NAMES}{rows}")
}

/// Two prompt tokens, the last layer for the second only, and a decoded one; then a new chat.
const ROWS: &str = "0,0,0,1,0,7,0.75,0,5\n0,0,0,1,1,2,0.25,1,0\n0,0,1,1,0,3,0.5,0,5\n0,0,1,1,1,4,0.5,0,5\n\
    0,0,1,2,0,1,1.0,0,5\n0,0,1,2,1,0,0.0,0,5\n0,1,2,1,0,5,0.5,0,5\n0,1,2,1,1,6,0.5,2,0\n0,1,2,2,0,7,0.5,1,0\n0,1,2,2,1,0,0.5,1,0\n\
    1,1,3,1,0,5,0.5,0,5\n2,0,0,2,0,1,nan,0,5\n";

#[test]
fn cells_that_were_not_recorded_stay_empty() {
    let trace = read(file(ROWS), &ImportOptions::default()).unwrap();
    let geometry = trace.geometry();
    assert_eq!((geometry.layers(), geometry.experts(), geometry.top_k()), (2, 8, 2));
    assert_eq!(geometry.moe_layers()[0].model_layer, 1, "layer 0 is dense");
    assert_eq!((trace.len(), trace.model()), (2, Some("my model.gguf")));
    let first = &trace.sequences()[0];
    let e = EMPTY_SLOT;
    assert_eq!(first.experts, [7, 2, e, e, 3, 4, 1, 0, 5, 6, 7, 0, 5, e, e, e]);
    assert_eq!(first.weights.as_deref().unwrap()[..8], [0.75, 0.25, 0.0, 0.0, 0.5, 0.5, 1.0, 0.0]);
    assert_eq!(first.phases, [0, 0, 1, 1], "the next turn continues the context");
    assert_eq!((trace.sequences()[1].weights.clone(), trace.sequences()[1].experts.clone()), (None, vec![e, e, 1, e]));
}

/// Experts that were dropped were chosen by the router: they stay, and it is said.
#[test]
fn dropped_experts_are_said() {
    let names = NAMES.replace("expert_bytes", "expert_bytes,dropped");
    let rows = "0,1,0,1,0,7,0.75,0,0,1\n0,1,0,1,1,2,0.25,1,0,0\n";
    let trace = read(format!("{HEAD}{names}{rows}"), &ImportOptions::default()).unwrap();
    assert_eq!(trace.sequences()[0].experts[..2], [7, 2]);
    let report = trace.import_report().to_string();
    assert!(report.starts_with("f, line 7: an expert was dropped"), "{report}");
    let other = ImportOptions { experts: Some(16), ..ImportOptions::default() };
    assert_eq!(failure(file(ROWS), &other), "f, preamble: n_expert is 8, the options say 16");
}

#[test]
fn errors_name_line_column_value_and_limit() {
    let message = |rows: &str| failure(file(rows), &ImportOptions::default());
    let at = |text: &str| format!("f, line 7: {text}");
    assert_eq!(
        message("0,0,0,1,0,8,0.5,0,0\n"),
        at("expert is 8, there are 8 experts; 8 often marks an empty slot: then give --empty-id 8")
    );
    assert_eq!(message("0,0,0,1,2,1,0.5,0,0\n"), at("slot is 2, expected an integer below 2"));
    assert_eq!(message("0,2,0,1,0,1,0.5,0,0\n"), at("phase is 2, expected an integer below 2"));
    assert_eq!(message("0,0,0,3,0,1,0.5,0,0\n"), at("layer is 3, expected an integer below 3"));
    assert_eq!(message("0,0,0,0,0,1,0.5,0,0\n"), at("layer is 0, the preamble says that this layer has no experts"));
    assert_eq!(message("0,0,x,1,0,1,0.5,0,0\n"), at("step is x, expected a position in the context"));
    assert_eq!(message("-1,0,0,1,0,1,0.5,0,0\n"), at("turn is -1, expected a turn number"));
    assert_eq!(message("0,0,0,1,0,1,inf,0,0\n"), at("weight is inf, expected a finite number or nan"));
    let twice = "0,0,0,1,0,1,0.5,0,0\n0,0,0,1,0,1,0.5,0,0\n";
    assert_eq!(message(twice), "f, line 8: slot is 0, this cell came before");
    let phases = "0,0,0,1,0,1,0.5,0,0\n0,1,0,1,1,2,0.5,0,0\n";
    assert_eq!(message(phases), "f, line 8: phase is 1, this step came before in another phase");
    let experts = "0,0,0,1,0,1,0.5,0,0\n0,0,0,1,1,1,0.5,0,0\n";
    assert_eq!(message(experts), "f, line 8: expert is 1, it came before in this step and layer");
    assert_eq!(message("0,0,0,1\n"), "f, line 7: number of fields is 4, the header has 9");
    let head = |from: &str, to: &str| failure(file(ROWS).replacen(from, to, 1), &ImportOptions::default());
    assert_eq!(head("n_expert=8", "n_expert=many"), "f, line 2: n_expert is many, expected a whole number");
    assert_eq!(head("layer=1", "layer=7"), "f, line 4: layer is 7, layers are listed in order, 1 is next");
    assert_eq!(head("n_expert=8", "n_expert=1"), "f: the file does not make a trace: top_k is 2, allowed are 1..=1");
    assert_eq!(head("n_expert=8 ", ""), "f, preamble: n_expert is missing, expected a number in the preamble");
    let header = head("expert,weight", "id,weight");
    assert!(
        header.starts_with("f, line 6: header is turn,") && header.ends_with("expected a column expert"),
        "{header}"
    );
    let long = format!("# route_trace v1\n#{}\n", "x".repeat(70_000));
    assert_eq!(failure(long, &ImportOptions::default()), "f, line 2: comment is longer, at most 65536 bytes");
}

#[test]
fn the_real_captures_are_read() {
    // Tokens, prompt tokens, layers and routed experts as counted in the files with other tools.
    for (name, layers, prompt, tokens, routed, model) in [
        ("qwen", 48, 28, 156, 44_766, "Qwen3-30B-A3B-Q4_K_M.gguf"),
        ("gemma", 30, 29, 157, 28_260, "google_gemma-4-26B-A4B-it-Q4_K_M.gguf"),
    ] {
        let Some(path) = real(&format!("bigmoe-on-edge/{name}.route.csv")) else { return };
        assert_eq!(detect_importer(&path).unwrap().name(), "big-moe-on-edge");
        let trace = import(&path, &ImportOptions::default()).unwrap();
        assert_eq!((trace.len(), trace.geometry().layers(), trace.model()), (1, layers, Some(model)));
        assert_eq!((trace.geometry().experts(), trace.geometry().top_k()), (128, 6));
        let sequence = trace.sequence(0).unwrap();
        let prefilled = (0..sequence.len()).filter(|&token| sequence.phase(token) == Phase::Prefill).count();
        assert_eq!((sequence.len(), prefilled, sequence.has_weights()), (tokens, prompt, true));
        let ids = |token: usize| trace.geometry().layer_ids().map(move |layer| sequence.experts(token, layer).count());
        assert_eq!((0..tokens).flat_map(ids).sum::<usize>(), routed);
        let last = LayerId(u16::try_from(layers - 1).unwrap());
        if name == "qwen" {
            let counts: Vec<usize> = (0..29).map(|token| sequence.experts(token, last).count()).collect();
            assert_eq!(counts, [vec![0; 27], vec![6, 6]].concat(), "only the last prompt token reaches the last layer");
            let first: Vec<u16> = sequence.experts(0, LayerId(0)).map(|expert| expert.0).collect();
            assert_eq!(first, [49, 19, 58, 29, 16, 70]);
        }
    }
}
