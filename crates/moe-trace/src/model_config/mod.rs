//! The shape of a model, from its `config.json`.

mod families;
mod fields;
mod file;
mod layers;
mod sizes;

use std::path::Path;

pub use sizes::ModelSizes;

use crate::{Geometry, Result, Stack};
use fields::Fields;

/// The layers of one stack of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackLayers {
    /// Number of layers, dense ones counted.
    pub layers: usize,
    /// Layers with experts, ascending.
    pub moe_layers: Vec<usize>,
}

/// The experts of a model, as its `config.json` describes them.
///
/// Which key means what depends on the family, that is on `model_type`. The reader has the keys and the defaults of
/// every family of transformers 5.24 that sends tokens to experts, and reads the language model of a model of several
/// modalities. A family that it does not have is an error, and so are two keys that contradict each other.
///
/// ```
/// use std::path::Path;
/// use moe_trace::ModelConfig;
///
/// let json = br#"{"model_type": "lfm2_moe", "num_hidden_layers": 4, "num_dense_layers": 2, "num_experts": 8,
///     "num_experts_per_tok": 2}"#;
/// let config = ModelConfig::parse(Path::new("config.json"), json)?;
/// assert_eq!((config.experts, config.top_k), (8, 2));
/// assert_eq!((config.decoder.layers, config.decoder.moe_layers), (4, vec![2, 3]));
/// # Ok::<(), moe_trace::TraceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelConfig {
    /// The family, as `model_type` of the language model has it.
    pub family: String,
    /// Experts per layer.
    pub experts: usize,
    /// Experts per token and layer.
    pub top_k: usize,
    /// Layers of the decoder, or of the only stack.
    pub decoder: StackLayers,
    /// Layers of the encoder, if the model has an encoder beside its decoder.
    pub encoder: Option<StackLayers>,
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`TraceError::Io`](crate::TraceError::Io); [`TraceError::Malformed`](crate::TraceError::Malformed) for a file
    /// that is not JSON; [`TraceError::Record`](crate::TraceError::Record) for an unknown family, a model without
    /// experts, impossible numbers, and keys that contradict each other.
    pub fn read(path: impl AsRef<Path>) -> Result<ModelConfig> {
        let path = path.as_ref();
        ModelConfig::parse(path, &file::read(path)?)
    }

    /// Parses the bytes of a `config.json`; errors name `path`.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(path: &Path, json: &[u8]) -> Result<ModelConfig> {
        let root = file::json(path, json)?;
        ModelConfig::of(&Fields::of_language_model(path, &root)?)
    }

    fn of(fields: &Fields<'_>) -> Result<ModelConfig> {
        let family = fields.family();
        let stacks = layers::stacks(fields)?;
        let experts = fields.one_of(families::EXPERTS, family.experts, 1, Geometry::MAX_EXPERTS)?;
        let top_k = fields.one_of(families::TOP_K, family.top_k, 1, experts)?;
        Ok(ModelConfig {
            family: fields.name().to_owned(),
            experts,
            top_k,
            decoder: stacks.decoder,
            encoder: stacks.encoder,
        })
    }

    /// Returns the layers of a stack, if the model has that stack.
    pub fn stack(&self, stack: Stack) -> Option<&StackLayers> {
        match stack {
            Stack::Decoder => Some(&self.decoder),
            Stack::Encoder => self.encoder.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
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
        let blocks = ", \"layers_block_type\": [\"mamba\", \"moe\", \"attention\", \"mlp\", \"mamba\", \"moe\", \"mamba\", \"moe\"]";
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
        let nllb = "{\"model_type\": \"nllb-moe\", \"encoder_layers\": 4, \"decoder_layers\": 4,
            \"encoder_sparse_step\": 0, \"decoder_sparse_step\": 2, \"num_experts\": 8}";
        let nllb = parse(nllb).unwrap();
        assert_eq!(nllb.stack(Stack::Decoder).unwrap().moe_layers, [1, 3]);
        assert!(nllb.stack(Stack::Encoder).unwrap().moe_layers.is_empty());
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
        let deep = read(format!(
            "{{\"model_type\": \"qwen3_omni_moe\", \"thinker_config\": {{\"text_config\": {{{inner}}}}}}}"
        ));
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
        let message =
            parse("{\"model_type\": \"x\", \"text_config\": {\"model_type\": \"y\"}}").unwrap_err().to_string();
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
        assert!(
            message("{\"model_type\": \"dots1\"}").contains("num_experts is missing, expected one of num_experts,")
        );
        assert!(layers("doge", "").unwrap_err().contains("is_moe is missing, expected true"));
        assert!(
            layers("qwen3_moe", ", \"decoder_sparse_step\": 0")
                .unwrap_err()
                .contains("decoder_sparse_step is 0, allowed")
        );
        assert!(layers("deepseek_v3", ", \"first_k_dense_replace\": 8").unwrap_err().contains("none of the 8 layers"));
        assert!(
            layers("llama4_text", ", \"moe_layers\": [8]").unwrap_err().contains("moe_layers is 8, the model has 8")
        );
        let words = layers("glm4_moe_lite", ", \"mlp_layer_types\": [\"sparse\"]").unwrap_err();
        assert!(
            words.contains("mlp_layer_types is a list of 1, expected one entry for each of the 8 layers"),
            "{words}"
        );
        let spelled = layers("glm4_moe_lite", ", \"mlp_layer_types\": [\"spars\"]").unwrap_err();
        assert!(
            spelled.contains("mlp_layer_types is spars, expected sparse, moe, hash_moe, dense or mlp"),
            "{spelled}"
        );
        let uneven =
            "{\"model_type\": \"hunyuan_v1_moe\", \"num_hidden_layers\": 2, \"num_experts\": 8, \"moe_topk\": [2, 4]}";
        assert!(message(uneven).contains("moe_topk is [2, 4], expected one number, or the same for every layer"));
        assert!(message("[]").contains("model_type is missing"));
        assert_eq!(message("{"), "c: not a readable JSON file");
    }
}
