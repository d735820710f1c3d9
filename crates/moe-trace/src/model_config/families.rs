//! Families of models: their names, the keys of their layers, and the defaults that transformers has for those keys.

use super::layers::Limit;
use super::layers::Limit::{FirstDense, Key};
use super::sizes::{Attention, Shape, Shared};

/// Names of the number of experts per layer.
pub(super) const EXPERTS: &[&str] =
    &["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "ffn_config.moe_num_experts"];

/// Names of the number of experts per token.
pub(super) const TOP_K: &[&str] = &[
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "ffn_config.moe_top_k",
];

/// Names of the number of layers.
pub(super) const LAYERS: &[&str] = &["num_hidden_layers", "n_layers", "num_layers", "n_layer"];

/// How a family says which layers have experts.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// The first of the keys `listed` that the file has; without one, all layers that every limit leaves.
    Layers { listed: &'static [&'static str], limits: &'static [Limit] },
    /// One word or letter per layer, `layers_block_type` or `hybrid_override_pattern`.
    Blocks,
    /// Switch: a number of sparse layers in each stack.
    SparseLayers,
    /// NLLB: a step in each stack.
    SparseSteps,
}

/// The number of layers: its names, and what it is in a file without it.
#[derive(Clone, Copy)]
pub(super) struct LayerCount {
    pub(super) keys: &'static [&'static str],
    /// 0 if there is no default.
    pub(super) default: usize,
}

/// A family of models.
#[derive(Clone, Copy)]
pub(super) struct Family {
    names: &'static [&'static str],
    pub(super) layers: LayerCount,
    /// Experts per layer by default, 0 if there is no default.
    pub(super) experts: usize,
    /// Experts per token by default, 0 if there is no default.
    pub(super) top_k: usize,
    pub(super) rule: Rule,
    /// A key that must be true for the model to have experts.
    pub(super) flag: Option<&'static str>,
    /// Where its sizes are, if they follow from the file.
    pub(super) shape: Option<Shape>,
}

const ALL: Rule = Rule::Layers { listed: &[], limits: &[] };

const fn limits(limits: &'static [Limit]) -> Rule {
    Rule::Layers { listed: &[], limits }
}

/// `mlp_layer_types`, and what holds without it.
const fn types(limits: &'static [Limit]) -> Rule {
    Rule::Layers { listed: &["mlp_layer_types"], limits }
}

const STEPS: Rule = limits(&[Key("decoder_sparse_step", 1), Key("mlp_only_layers", 0)]);

/// A family that has the given layers, experts and top-k by default.
const fn family(names: &'static [&'static str], [layers, experts, top_k]: [usize; 3], rule: Rule) -> Family {
    let layers = LayerCount { keys: LAYERS, default: layers };
    Family { names, layers, experts, top_k, rule, flag: None, shape: None }
}

impl Family {
    const fn only_if(self, flag: &'static str) -> Family {
        Family { flag: Some(flag), ..self }
    }

    const fn counted_by(self, keys: &'static [&'static str]) -> Family {
        let layers = LayerCount { keys, default: self.layers.default };
        Family { layers, ..self }
    }

    const fn shaped(self, shape: Shape) -> Family {
        Family { shape: Some(shape), ..self }
    }
}

/// Experts of width `moe_intermediate_size`, dense layers of width `intermediate_size`.
const fn shape(attention: Attention, shared: Shared) -> Shape {
    Shape { attention, expert: "moe_intermediate_size", dense: "intermediate_size", shared }
}

/// Experts of width `intermediate_size`.
const fn plain(attention: Attention, shared: Shared) -> Shape {
    Shape { attention, expert: "intermediate_size", dense: "intermediate_size", shared }
}

const GROUPED: Attention = Attention::Grouped { head_dim: 0 };
const HEADS_OF_64: Attention = Attention::Grouped { head_dim: 64 };
const HEADS_OF_128: Attention = Attention::Grouped { head_dim: 128 };
const LATENT: Attention = Attention::Latent;
const NO_SHARED: Shared = Shared::None;

/// Every family of transformers 5.24 whose routers send tokens to experts, and relatives that run on their own code.
const FAMILIES: &[Family] = &[
    family(&["afmoe"], [32, 64, 6], limits(&[Key("num_dense_layers", 1)])),
    family(&["aria_text"], [32, 8, 2], ALL).shaped(plain(GROUPED, Shared::Experts("moe_num_shared_experts"))),
    family(&["axk1"], [61, 192, 8], types(&[Key("first_k_dense_replace", 1), Key("moe_layer_freq", 1)]))
        .shaped(shape(LATENT, Shared::Experts("n_shared_experts"))),
    family(&["axk2"], [48, 128, 8], types(&[Key("first_k_dense_replace", 1), Key("moe_layer_freq", 1)])),
    family(&["bailing_hybrid"], [42, 512, 8], types(&[Key("first_k_dense_replace", 2)])),
    family(&["beam"], [52, 256, 8], types(&[FirstDense(3)])),
    family(&["cohere2_moe"], [40, 8, 2], types(&[Key("first_k_dense_replace", 0)])),
    family(&["dbrx"], [24, 4, 1], ALL),
    family(&["deepseek"], [0, 0, 0], limits(&[Key("first_k_dense_replace", 0), Key("moe_layer_freq", 1)]))
        .shaped(shape(GROUPED, Shared::Experts("n_shared_experts"))),
    family(&["deepseek_v2"], [32, 64, 0], limits(&[Key("first_k_dense_replace", 0)]))
        .shaped(shape(LATENT, Shared::Experts("n_shared_experts"))),
    family(&["deepseek_ocr2_text"], [32, 64, 0], types(&[])),
    family(&["deepseek_v3", "kimi_k2"], [61, 256, 8], limits(&[Key("first_k_dense_replace", 3)]))
        .shaped(shape(LATENT, Shared::Experts("n_shared_experts"))),
    family(&["deepseek_v32"], [61, 256, 8], types(&[Key("first_k_dense_replace", 3)])),
    family(&["deepseek_v4"], [43, 256, 6], types(&[])),
    family(&["diffusion_gemma_text"], [30, 0, 0], ALL),
    family(&["doge"], [32, 16384, 64], ALL).only_if("is_moe"),
    family(&["dots1"], [62, 0, 0], limits(&[Key("first_k_dense_replace", 0)]))
        .shaped(shape(GROUPED, Shared::Experts("n_shared_experts"))),
    family(&["dots3_note_text"], [46, 256, 8], types(&[Key("first_k_dense_replace", 1), Key("moe_layer_freq", 1)])),
    family(
        &["ernie4_5_moe"],
        [28, 64, 6],
        limits(&[Key("moe_layer_start_index", 1), Key("moe_layer_end_index", 0), Key("moe_layer_interval", 1)]),
    )
    .shaped(shape(GROUPED, Shared::Experts("moe_num_shared_experts"))),
    family(&["ernie4_5_vl_moe_text"], [28, 64, 6], types(&[FirstDense(1)])),
    family(&["exaone_moe"], [32, 64, 8], types(&[Key("first_k_dense_replace", 1)]))
        .shaped(shape(GROUPED, Shared::Experts("num_shared_experts"))),
    family(&["flex_olmo"], [32, 7, 5], ALL).shaped(plain(GROUPED, NO_SHARED)),
    family(&["flint"], [49, 256, 6], limits(&[Key("decoder_sparse_step", 1), Key("mlp_only_layers", 2)])),
    family(&["gemma4_text"], [30, 0, 0], ALL).only_if("enable_moe_block"),
    family(&["glm4_moe", "glm4v_moe_text"], [46, 128, 8], limits(&[Key("first_k_dense_replace", 1)]))
        .shaped(shape(GROUPED, Shared::Experts("n_shared_experts"))),
    family(&["glm4_moe_lite"], [47, 64, 4], types(&[FirstDense(1)]))
        .shaped(shape(LATENT, Shared::Experts("n_shared_experts"))),
    family(&["glm5_next_text"], [45, 288, 8], types(&[FirstDense(3)])),
    family(&["glm_moe_dsa"], [78, 256, 8], types(&[Key("first_k_dense_replace", 3)])),
    family(&["gpt_oss"], [36, 128, 4], ALL).shaped(plain(HEADS_OF_64, NO_SHARED)),
    family(&["granitemoe"], [32, 8, 2], ALL).shaped(plain(GROUPED, NO_SHARED)),
    family(&["granitemoe_swa", "granitemoeshared"], [32, 8, 2], ALL)
        .shaped(plain(GROUPED, Shared::Width("shared_intermediate_size"))),
    family(&["granitemoehybrid"], [32, 8, 2], ALL),
    family(&["hunyuan_v1_moe"], [32, 1, 1], ALL).shaped(plain(GROUPED, Shared::Width("intermediate_size"))),
    family(&["hy_v3"], [80, 192, 8], types(&[FirstDense(1)]))
        .shaped(shape(HEADS_OF_128, Shared::Experts("num_shared_experts"))),
    family(&["hy_v4"], [34, 256, 8], types(&[FirstDense(1)])),
    family(&["hy_v4_vl_text"], [78, 256, 8], types(&[FirstDense(1)])),
    family(&["inkling_text"], [66, 256, 6], types(&[Key("dense_mlp_idx", 0)])),
    family(&["inkling2_text"], [48, 384, 8], ALL),
    family(&["inkling2_loop_text"], [24, 128, 8], ALL),
    family(&["jamba"], [32, 16, 2], limits(&[Key("expert_layer_period", 2)])),
    family(&["jetmoe"], [12, 8, 2], ALL),
    family(&["kimi_linear"], [27, 256, 8], types(&[Key("first_k_dense_replace", 1)])),
    family(&["kolibri1"], [50, 384, 6], ALL),
    family(&["laguna"], [40, 256, 8], types(&[FirstDense(1)])),
    family(&["lara_mini"], [34, 128, 4], ALL),
    family(&["lfm2_moe"], [32, 32, 4], limits(&[Key("num_dense_layers", 2)])),
    family(
        &["llama4_text"],
        [48, 16, 1],
        Rule::Layers { listed: &["moe_layers"], limits: &[Key("interleave_moe_layer_step", 1)] },
    )
    .shaped(Shape { dense: "intermediate_size_mlp", ..plain(HEADS_OF_128, Shared::Width("intermediate_size")) }),
    family(&["longcat_flash"], [0, 512, 12], ALL).counted_by(&["num_layers"]),
    family(&["mellum"], [28, 64, 8], types(&[])).shaped(shape(HEADS_OF_128, NO_SHARED)),
    family(&["mimo_v2_flash"], [48, 256, 8], types(&[FirstDense(1)])),
    family(&["minimax"], [32, 8, 2], ALL),
    family(&["minimax_m2"], [62, 256, 8], ALL).shaped(plain(HEADS_OF_128, NO_SHARED)),
    family(&["minimax_m3_vl_text"], [60, 128, 4], types(&[Key("moe_layer_freq", 1)])),
    family(&["mistral4"], [36, 128, 4], limits(&[Key("first_k_dense_replace", 0)]))
        .shaped(shape(LATENT, Shared::Experts("n_shared_experts"))),
    family(&["mistral_large4_text"], [72, 128, 4], types(&[Key("first_k_dense_replace", 1)])),
    family(&["mixtral"], [32, 8, 2], ALL).shaped(plain(GROUPED, NO_SHARED)),
    family(&["muse_spark_text"], [62, 256, 8], types(&[])),
    family(&["nemotron_h"], [0, 8, 2], Rule::Blocks),
    family(&["nllb-moe"], [12, 128, 2], Rule::SparseSteps),
    family(&["olmoe"], [16, 64, 8], ALL).shaped(plain(GROUPED, NO_SHARED)),
    family(&["openai_privacy_filter"], [8, 128, 4], ALL),
    family(&["phimoe"], [32, 16, 2], ALL).shaped(plain(GROUPED, NO_SHARED)),
    family(&["qwen2_moe"], [24, 60, 4], STEPS).shaped(shape(GROUPED, Shared::Width("shared_expert_intermediate_size"))),
    family(&["qwen3_moe"], [24, 128, 8], STEPS).shaped(shape(GROUPED, NO_SHARED)),
    family(&["qwen3_omni_moe_text"], [28, 128, 8], STEPS).shaped(shape(GROUPED, NO_SHARED)),
    family(&["qwen3_vl_moe_text"], [24, 60, 4], STEPS).shaped(shape(HEADS_OF_128, NO_SHARED)),
    family(&["qwen3_5_moe_text"], [40, 256, 8], ALL),
    family(&["qwen3_next"], [48, 512, 10], STEPS),
    family(&["qwen4_exp_text"], [40, 512, 10], ALL),
    family(&["sarvam_mla"], [32, 128, 8], limits(&[Key("first_k_dense_replace", 1)]))
        .shaped(shape(LATENT, Shared::Experts("n_shared_experts"))),
    family(&["sarvam_moe"], [19, 128, 6], limits(&[Key("first_k_dense_replace", 1)]))
        .shaped(shape(HEADS_OF_64, Shared::Experts("n_shared_experts"))),
    family(&["solar_open"], [48, 128, 8], ALL).shaped(shape(HEADS_OF_128, Shared::Experts("n_shared_experts"))),
    family(
        &["step3p5"],
        [45, 288, 8],
        Rule::Layers { listed: &["mlp_layer_types", "moe_layers_enum"], limits: &[FirstDense(3)] },
    ),
    family(&["switch_transformers"], [12, 8, 1], Rule::SparseLayers),
    family(&["unlimited_ocr_text"], [12, 64, 6], types(&[Key("first_k_dense_replace", 1)])),
    family(&["zaya"], [40, 16, 1], ALL),
];

/// Models of several modalities, and the family of their language model where the file does not name it.
const TEXT_MODELS: &[(&str, &str)] = &[
    ("aria", "aria_text"),
    ("deepseek_ocr2", "deepseek_ocr2_text"),
    ("diffusion_gemma", "diffusion_gemma_text"),
    ("dots3_note", "dots3_note_text"),
    ("ernie4_5_vl_moe", "ernie4_5_vl_moe_text"),
    ("gemma4", "gemma4_text"),
    ("glm4v_moe", "glm4v_moe_text"),
    ("glm5_next", "glm5_next_text"),
    ("hy_v4_vl", "hy_v4_vl_text"),
    ("inkling_mm_model", "inkling_text"),
    ("inkling2", "inkling2_text"),
    ("inkling2_loop", "inkling2_loop_text"),
    ("llama4", "llama4_text"),
    ("minimax_m3_vl", "minimax_m3_vl_text"),
    ("mistral_large4", "mistral_large4_text"),
    ("muse_spark", "muse_spark_text"),
    ("qwen3_5_moe", "qwen3_5_moe_text"),
    ("qwen3_omni_moe", "qwen3_omni_moe_thinker"),
    ("qwen3_omni_moe_thinker", "qwen3_omni_moe_text"),
    ("qwen3_vl_moe", "qwen3_vl_moe_text"),
    ("qwen4_exp", "qwen4_exp_text"),
    ("step3p7", "step3p5"),
    ("unlimited_ocr", "unlimited_ocr_text"),
];

/// Models of several modalities whose file may have the keys of the language model at its root.
const FLAT: &[&str] = &["dots3_note", "glm5_next"];

/// Finds the family of a `model_type`.
pub(super) fn find(model_type: &str) -> Option<(&'static str, &'static Family)> {
    FAMILIES.iter().find_map(|family| family.names.iter().find(|&&name| name == model_type).map(|&name| (name, family)))
}

/// Returns the `model_type` that the language model of `outer` has if the file does not say it.
pub(super) fn text_model_of(outer: &str) -> Option<&'static str> {
    TEXT_MODELS.iter().find(|(name, _)| *name == outer).map(|&(_, text)| text)
}

/// Whether the language model of `outer` may stand at the root of the file.
pub(super) fn is_flat(outer: &str) -> bool {
    FLAT.contains(&outer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_one_family() {
        let mut names: Vec<&str> = FAMILIES.iter().flat_map(|family| family.names).copied().collect();
        names.extend(TEXT_MODELS.iter().map(|(name, _)| *name));
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(FLAT.iter().all(|name| text_model_of(name).is_some()));
    }
}
