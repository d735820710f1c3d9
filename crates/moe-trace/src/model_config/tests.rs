//! The reader against hand-written files, and against what transformers builds.

use serde_json::Value;

use super::*;

fn parse(json: &str) -> Result<ModelConfig> {
    ModelConfig::parse(Path::new("c"), json.as_bytes())
}

/// The layers of a model of 8 layers, or the message.
fn layers(family: &str, rest: &str) -> Result<Vec<usize>, String> {
    let json = format!(
        "{{\"model_type\": \"{family}\", \"num_hidden_layers\": 8, \"num_experts\": 4,
        \"num_experts_per_tok\": 2{rest}}}"
    );
    parse(&json).map(|config| config.decoder.moe_layers).map_err(|error| error.to_string())
}

#[test]
fn every_key_of_layers_is_read() {
    let of = |family, rest| layers(family, rest).unwrap();
    assert_eq!(of("mixtral", ""), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(of("deepseek_v3", ", \"first_k_dense_replace\": 4, \"moe_layer_freq\": 1"), [4, 5, 6, 7]);
    assert_eq!(of("axk1", ", \"first_k_dense_replace\": 2, \"moe_layer_freq\": 3"), [3, 6]);
    assert_eq!(of("lfm2_moe", ", \"num_dense_layers\": 5"), [5, 6, 7]);
    assert_eq!(of("dots3_note_text", ", \"moe_layer_freq\": [1, 1, 1, 0, 0, 0, 0, 1]"), [1, 2, 7]);
    assert_eq!(of("minimax_m3_vl_text", ", \"moe_layer_freq\": [0, 1, 1, 0, 0, 0, 0, 1]"), [1, 2, 7]);
    assert_eq!(of("qwen3_moe", ", \"decoder_sparse_step\": 2, \"mlp_only_layers\": [3, 9]"), [1, 5, 7]);
    assert_eq!(of("jamba", ", \"expert_layer_period\": 4, \"expert_layer_offset\": 2"), [2, 6]);
    let range = ", \"moe_layer_start_index\": 1, \"moe_layer_end_index\": 4, \"moe_layer_interval\": 2";
    assert_eq!(of("ernie4_5_moe", range), [1, 3]);
    assert_eq!(of("ernie4_5_moe", ", \"moe_layer_start_index\": 6, \"moe_layer_end_index\": -1"), [6, 7]);
    assert_eq!(of("llama4_text", ", \"interleave_moe_layer_step\": 4"), [3, 7]);
    assert_eq!(of("llama4_text", ", \"moe_layers\": [0, 5]"), [0, 5]);
    assert_eq!(of("step3p5", ", \"moe_layers_enum\": \"4, 6,7\""), [4, 6, 7]);
    assert_eq!(of("inkling_text", ", \"dense_mlp_idx\": 6"), [6, 7]);
    let words = "\"dense\", \"dense\", \"sparse\", \"sparse\", \"sparse\", \"sparse\", \"sparse\", \"dense\"";
    let listed = format!(", \"mlp_layer_types\": [{words}]");
    assert_eq!(of("glm4_moe_lite", &listed), [2, 3, 4, 5, 6]);
    let further = format!(", \"num_nextn_predict_layers\": 1, \"mlp_layer_types\": [{words}, \"sparse\"]");
    assert_eq!(of("step3p5", &further), [2, 3, 4, 5, 6], "a block that predicts is no layer");
    let blocks =
        ", \"layers_block_type\": [\"mamba\", \"moe\", \"attention\", \"mlp\", \"mamba\", \"moe\", \"mamba\", \"moe\"]";
    assert_eq!(of("nemotron_h", blocks), [1, 5, 7]);
    assert_eq!(of("nemotron_h", ", \"hybrid_override_pattern\": \"ME*-MEME\""), [1, 5, 7]);
    assert_eq!(of("gemma4_text", ", \"enable_moe_block\": true"), [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_family_has_the_defaults_of_its_own() {
    let of = |family| layers(family, "").unwrap();
    assert_eq!(of("deepseek_v2"), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(of("deepseek_v3"), [3, 4, 5, 6, 7]);
    assert_eq!(of("lfm2_moe"), [2, 3, 4, 5, 6, 7]);
    assert_eq!(of("glm4_moe_lite"), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(of("jamba"), [1, 3, 5, 7]);
    assert_eq!(of("flint"), [2, 3, 4, 5, 6, 7]);
    let mixtral = parse("{\"model_type\": \"mixtral\"}").unwrap();
    assert_eq!((mixtral.decoder.layers, mixtral.experts, mixtral.top_k), (32, 8, 2));
}

#[test]
fn two_stacks_have_layers_of_their_own() {
    let switch = parse(
        "{\"model_type\": \"switch_transformers\", \"num_layers\": 4, \"num_sparse_encoder_layers\": 2,
        \"num_decoder_layers\": 6, \"num_sparse_decoder_layers\": 2, \"num_experts\": 8}",
    )
    .unwrap();
    assert_eq!((switch.decoder.moe_layers, switch.top_k), (vec![1, 4], 1));
    assert_eq!(switch.encoder.unwrap().moe_layers, [1, 3]);
    let steps = "{\"model_type\": \"switch_transformers\", \"num_layers\": 6, \"num_sparse_encoder_layers\": 3,
        \"encoder_sparse_step\": 3}";
    let message = parse(steps).unwrap_err().to_string();
    assert!(message.contains("encoder_sparse_step is 3, but by num_sparse_encoder_layers it is 2"), "{message}");
    let nllb = "{\"model_type\": \"nllb-moe\", \"encoder_layers\": 4, \"decoder_layers\": 4,
        \"encoder_sparse_step\": 0, \"decoder_sparse_step\": 2, \"num_experts\": 8}";
    let nllb = parse(nllb).unwrap();
    assert_eq!(nllb.stack(Stack::Decoder).unwrap().moe_layers, [1, 3]);
    assert!(nllb.stack(Stack::Encoder).unwrap().moe_layers.is_empty());
    let neither = "{\"model_type\": \"nllb-moe\", \"encoder_sparse_step\": 0, \"decoder_sparse_step\": 0}";
    assert!(parse(neither).unwrap_err().to_string().contains("none of the 24 layers has experts"));
}

#[test]
fn the_language_model_of_several_modalities_is_read() {
    let inner = "\"num_hidden_layers\": 2, \"num_experts\": 4, \"num_experts_per_tok\": 1";
    let read = |json: String| parse(&json).unwrap();
    let named =
        read(format!("{{\"model_type\": \"llava\", \"text_config\": {{\"model_type\": \"mixtral\", {inner}}}}}"));
    assert_eq!(named.family, "mixtral");
    let unnamed = read(format!("{{\"model_type\": \"qwen3_vl_moe\", \"text_config\": {{{inner}}}}}"));
    assert_eq!(unnamed.family, "qwen3_vl_moe_text");
    let deep =
        read(format!("{{\"model_type\": \"qwen3_omni_moe\", \"thinker_config\": {{\"text_config\": {{{inner}}}}}}}"));
    assert_eq!((deep.family.as_str(), deep.experts), ("qwen3_omni_moe_text", 4));
    let flat = read(format!("{{\"model_type\": \"dots3_note\", \"text_config\": null, {inner}}}"));
    assert_eq!(flat.decoder.moe_layers, [1]);
    let nested =
        "{\"model_type\": \"dbrx\", \"n_layers\": 3, \"ffn_config\": {\"moe_num_experts\": 16, \"moe_top_k\": 4}}";
    let dbrx = read(nested.to_owned());
    assert_eq!((dbrx.decoder.layers, dbrx.experts, dbrx.top_k), (3, 16, 4));
}

#[test]
fn an_unknown_family_is_refused_with_what_to_do() {
    let message = parse("{\"num_hidden_layers\": 2, \"num_experts\": 4}").unwrap_err().to_string();
    assert!(message.starts_with("c, configuration: model_type is missing, which layers"), "{message}");
    let message = parse("{\"model_type\": \"x\", \"text_config\": {\"model_type\": \"y\"}}").unwrap_err().to_string();
    assert!(message.contains("model_type is x, in it y"), "{message}");
    assert!(message.contains("in text_config, thinker_config, language_config, llm_config"), "{message}");
    assert!(message.ends_with("(--experts, --top-k)"), "{message}");
}

#[test]
fn keys_that_contradict_each_other_are_refused() {
    let message = |family, rest| layers(family, rest).unwrap_err();
    let contradicts = "they contradict each other; remove the wrong one from the file";
    let frequency = message("deepseek_v3", ", \"moe_layer_freq\": 2");
    assert_eq!(
        frequency,
        format!(
            "c, configuration: moe_layer_freq is 2, but by the rule of the family the layers with experts are 3..=7: \
             {contradicts} (model_type deepseek_v3)"
        )
    );
    let first = message("glm4_moe_lite", ", \"first_k_dense_replace\": 3");
    assert!(first.contains("first_k_dense_replace is 3, but by the rule of the family"), "{first}");
    let list = message("mimo_v2_flash", ", \"moe_layer_freq\": [0, 0, 1, 1, 1, 1, 1, 1]");
    assert!(list.contains("moe_layer_freq is [0,0,1,1,1,1,1,1], but by the rule"), "{list}");
    assert!(layers("mimo_v2_flash", ", \"moe_layer_freq\": [0, 1, 1, 1, 1, 1, 1, 1]").is_ok());
    let step = message("llama4_text", ", \"moe_layers\": [0, 1], \"interleave_moe_layer_step\": 2");
    assert!(
        step.contains("interleave_moe_layer_step is 2, but by moe_layers the layers with experts are 0..=1"),
        "{step}"
    );
    let experts = message("qwen3_moe", ", \"num_local_experts\": 8");
    assert!(experts.contains("num_local_experts is 8, but num_experts is 4: "), "{experts}");
    let pattern = ", \"layers_block_type\": [\"moe\"], \"hybrid_override_pattern\": \"M\"";
    assert!(message("nemotron_h", pattern).contains("hybrid_override_pattern is \"M\", but by layers_block_type"));
    assert!(message("nemotron_h", ", \"layers_block_type\": [\"moe\"]").contains("num_hidden_layers is 8, but"));
}

#[test]
fn impossible_configurations_are_refused() {
    let message = |json: &str| parse(json).unwrap_err().to_string();
    let none = "{\"model_type\": \"olmoe\", \"num_hidden_layers\": 2, \"num_experts\": 0}";
    assert_eq!(message(none), "c, configuration: num_experts is 0, allowed are 1..=65535 (model_type olmoe)");
    let many = "{\"model_type\": \"ernie4_5_moe\", \"num_experts\": 4, \"moe_k\": 5}";
    assert_eq!(message(many), "c, configuration: moe_k is 5, allowed are 1..=4 (model_type ernie4_5_moe)");
    let word = "{\"model_type\": \"olmoe\", \"num_hidden_layers\": \"x\"}";
    assert!(message(word).contains("num_hidden_layers is \"x\", expected a whole number"));
    assert!(message("{\"model_type\": \"dots1\"}").contains("num_experts is missing, expected one of num_experts,"));
    assert!(layers("doge", "").unwrap_err().contains("is_moe is missing, expected true"));
    assert!(
        layers("qwen3_moe", ", \"decoder_sparse_step\": 0").unwrap_err().contains("decoder_sparse_step is 0, allowed")
    );
    assert!(layers("deepseek_v3", ", \"first_k_dense_replace\": 8").unwrap_err().contains("none of the 8 layers"));
    assert!(layers("llama4_text", ", \"moe_layers\": [8]").unwrap_err().contains("moe_layers is 8, the model has 8"));
    let words = layers("glm4_moe_lite", ", \"mlp_layer_types\": [\"sparse\"]").unwrap_err();
    assert!(words.contains("mlp_layer_types is a list of 1, expected one entry for each of the 8 layers"), "{words}");
    let spelled = layers("glm4_moe_lite", ", \"mlp_layer_types\": [\"spars\"]").unwrap_err();
    assert!(spelled.contains("mlp_layer_types is spars, expected sparse, moe, hash_moe, dense or mlp"), "{spelled}");
    let uneven =
        "{\"model_type\": \"hunyuan_v1_moe\", \"num_hidden_layers\": 2, \"num_experts\": 8, \"moe_topk\": [2, 4]}";
    assert!(message(uneven).contains("moe_topk is [2, 4], expected one number, or the same for every layer"));
    assert!(message("[]").contains("model_type is missing"));
    assert_eq!(message("{"), "c: not a readable JSON file");
}

/// A row of the table that `tools/config/families.py` makes with transformers.
struct Row {
    table: Value,
}

impl Row {
    fn all() -> Vec<Row> {
        let table = include_str!("../../tests/fixtures/model_configs.json");
        let rows: Vec<Value> = serde_json::from_str(table).unwrap();
        rows.into_iter().map(|table| Row { table }).collect()
    }

    fn name(&self) -> String {
        format!("{}, {}", self.table["family"].as_str().unwrap(), self.table["dialect"].as_str().unwrap())
    }

    fn json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.table["config"]).unwrap()
    }

    fn stack(&self, stack: &str) -> Option<StackLayers> {
        let found = self.table.get(stack)?;
        let number = |value: &Value| usize::try_from(value.as_u64().unwrap()).unwrap();
        let moe_layers = found["moe_layers"].as_array().unwrap().iter().map(number).collect();
        Some(StackLayers { layers: number(&found["layers"]), moe_layers })
    }
}

#[test]
fn every_family_has_the_layers_that_transformers_builds() {
    let rows = Row::all();
    let (mut agreed, mut refusals, mut wrong) = (0, 0, Vec::new());
    for row in &rows {
        let found = ModelConfig::parse(Path::new("c"), &row.json());
        let agrees = |config: &ModelConfig| {
            Some(&config.decoder) == row.stack("decoder").as_ref()
                && config.encoder == row.stack("encoder")
                && row.table["experts"].as_u64() == Some(config.experts as u64)
                && row.table["top_k"].as_u64() == Some(config.top_k as u64)
        };
        // A key that the family does not read may be refused, where it would mean other layers.
        let refused = |message: &str| row.table["known"] == false && message.contains("contradict each other");
        match found {
            Ok(config) if agrees(&config) => agreed += 1,
            Err(error) if refused(&error.to_string()) => refusals += 1,
            other => wrong.push(format!("{}: {other:?}", row.name())),
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    // The numbers of docs/models.md.
    assert_eq!((agreed, refusals), (291, 167));
}

#[test]
fn the_sizes_are_those_of_the_parameters_that_transformers_makes() {
    let mut wrong = Vec::new();
    let mut sized = std::collections::BTreeSet::new();
    for row in Row::all().iter().filter(|row| row.table["known"] == true && row.table["dialect"] != "the defaults") {
        let sizes = match ModelSizes::parse(Path::new("c"), &row.json()) {
            Ok(sizes) => sizes,
            // These rows have the numbers of layers and experts alone.
            Err(_) if row.table["dialect"] == "a language model without a name" => continue,
            Err(error) if error.to_string().contains("the sizes of this family's parts are not known") => continue,
            Err(error) => {
                wrong.push(format!("{}: {error}", row.name()));
                continue;
            }
        };
        sized.insert(sizes.config.family.clone());
        let dense = if sizes.dense_layers() == 0 { 0 } else { sizes.dense_layer_weights() };
        let ours = [sizes.attention_weights, sizes.shared_weights(), dense];
        let theirs = ["attention", "shared", "dense"].map(|part| row.table["weights"][part].as_u64().unwrap());
        if ours != theirs {
            wrong.push(format!("{}: {ours:?}, transformers {theirs:?}", row.name()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(sized.len() >= 25, "{sized:?}");
}
