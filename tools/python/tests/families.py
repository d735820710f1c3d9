"""Tiny random models of every family of transformers that routes tokens to experts."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from reference import Rule
from torch import nn

EXPERTS, LAYERS, VOCABULARY = 8, 4, 128

SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads",), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"), 3),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim"), 8),
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """One model class, and what a tiny one needs beyond `SIZES`; None takes a size out."""

    name: str
    model: str
    rule: Rule | None  # how logits become a choice; None where a test of its own says so
    sizes: dict[str, Any] = field(default_factory=dict)
    top_k: int = 3
    layers: tuple[int, ...] = tuple(range(LAYERS))
    experts: int = EXPERTS
    encoder_decoder: bool = False
    generates: bool = True
    variant: str = ""

    @property
    def label(self) -> str:
        return f"{self.name}-{self.variant}" if self.variant else self.name

    def build(self, seed: int = 0) -> nn.Module:
        module = importlib.import_module(f"transformers.models.{self.name}.modeling_{self.name}")
        model_class = getattr(module, self.model)
        config = tiny_config(model_class.config_class, self.sizes)
        torch.manual_seed(seed)
        model = model_class._from_config(config, attn_implementation="eager", experts_implementation="eager").eval()
        _randomize(model)
        return model


def tiny_config(config_class: type, sizes: dict[str, Any]) -> Any:
    default = config_class()
    chosen = {}
    for name, size in SIZES.items():
        try:
            value = getattr(default, name)
        except Exception:  # not an attribute, or one that varies over layers
            continue
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            chosen[name] = size
    chosen.update(sizes)
    return config_class(**{name: size for name, size in chosen.items() if size is not None})


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """Makes what a fresh model has at zero or at equal scores matter: routers, correction biases, lookup tables."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "tid2eid" in name:
            rows = torch.stack([torch.randperm(EXPERTS)[: tensor.shape[1]] for _ in range(tensor.shape[0])])
            tensor.copy_(rows)
        elif name.endswith(("correction_bias", "expert_bias", "balancing_biases")):
            tensor.copy_(0.1 * torch.randn_like(tensor))
            if name.endswith("balancing_biases"):
                tensor[-1] = tensor.max()  # the last one is that of no expert
        elif re.search("expert|gate|router|linear", name) and tensor.is_floating_point() and tensor.ndim >= 2:
            tensor.normal_(std=tensor.shape[-1] ** -0.5)


SOFTMAX = Rule()
RENORMALIZED = Rule(renormalize=True)
TOP_K_SOFTMAX = Rule("top-k softmax")
SIGMOID = Rule("sigmoid", renormalize=True)
CORRECTED = Rule("sigmoid", bias=True, renormalize=True)
CORRECTED_IN_GROUPS = Rule("sigmoid", bias=True, group="best two", renormalize=True, scale="routed_scaling_factor")

MLA = {"num_key_value_heads": 4}
DENSE_FIRST = (1, 2, 3)

FAMILIES = [
    Family("afmoe", "AfmoeForCausalLM", replace(CORRECTED, scale="route_scale"), layers=DENSE_FIRST),
    Family("aria", "AriaTextForCausalLM", TOP_K_SOFTMAX),
    Family("axk1", "AXK1ForCausalLM", CORRECTED_IN_GROUPS, MLA, layers=DENSE_FIRST),
    Family("axk2", "AXK2ForCausalLM", CORRECTED_IN_GROUPS, MLA, layers=DENSE_FIRST),
    Family(
        "bailing_hybrid",
        "BailingHybridForCausalLM",
        CORRECTED_IN_GROUPS,
        {**MLA, "layer_group_size": 2},
        layers=DENSE_FIRST,
    ),
    Family("beam", "BeamForCausalLM", replace(CORRECTED_IN_GROUPS, scale=None), layers=(3,)),
    Family("cohere2_moe", "Cohere2MoeForCausalLM", TOP_K_SOFTMAX),
    Family(
        "dbrx",
        "DbrxForCausalLM",
        RENORMALIZED,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"moe_num_experts": EXPERTS, "moe_top_k": 3, "ffn_hidden_size": 48, "hidden_size": 32},
        },
    ),
    Family(
        "deepseek_ocr2",
        "DeepseekOcr2TextModel",
        replace(SOFTMAX, scale="routed_scaling_factor"),
        {**MLA, "mlp_layer_types": ["dense"] + ["sparse"] * 3},
        layers=DENSE_FIRST,
        generates=False,
    ),
    Family(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        Rule(group="best", scale="routed_scaling_factor"),
        {**MLA, "topk_method": "group_limited_greedy"},
        layers=DENSE_FIRST,
    ),
    Family(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        replace(SOFTMAX, scale="routed_scaling_factor"),
        {**MLA, "topk_method": "greedy"},
        layers=DENSE_FIRST,
        variant="greedy",
    ),
    Family("deepseek_v3", "DeepseekV3ForCausalLM", CORRECTED_IN_GROUPS, MLA, layers=DENSE_FIRST),
    Family("deepseek_v32", "DeepseekV32ForCausalLM", CORRECTED_IN_GROUPS, MLA, layers=DENSE_FIRST),
    Family(
        "deepseek_v4",
        "DeepseekV4ForCausalLM",
        Rule("sqrt softplus", bias=True, renormalize=True, scale="routed_scaling_factor"),
    ),
    Family("doge", "DogeForCausalLM", None, {"is_moe": True, "num_experts": 16}, experts=16),
    Family(
        "dots1",
        "Dots1ForCausalLM",
        replace(CORRECTED_IN_GROUPS, renormalize=False),
        {"n_shared_experts": 1},
        layers=DENSE_FIRST,
    ),
    Family(
        "dots3_note",
        "Dots3NoteForCausalLM",
        CORRECTED_IN_GROUPS,
        {"num_attention_heads": 4, "num_key_value_heads": 4, "index_n_heads": 4, "index_head_dim": 16},
        layers=DENSE_FIRST,
    ),
    Family("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", Rule(bias=True, renormalize=True), layers=DENSE_FIRST),
    Family(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeTextModel",
        Rule(bias=True, renormalize=True),
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "moe_intermediate_size": [24, 24],
        },
        layers=DENSE_FIRST,
        generates=False,
    ),
    Family("exaone_moe", "ExaoneMoeForCausalLM", CORRECTED_IN_GROUPS, layers=DENSE_FIRST),
    Family("flex_olmo", "FlexOlmoForCausalLM", SOFTMAX),
    Family("flint", "FlintForCausalLM", SIGMOID, layers=(2, 3)),
    Family(
        "gemma4",
        "Gemma4ForCausalLM",
        Rule("probabilities", renormalize=True),
        {
            "enable_moe_block": True,
            "head_dim": 8,
            "global_head_dim": 8,
            "num_experts": EXPERTS,
            "top_k_experts": 3,
            "num_key_value_heads": 2,
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": VOCABULARY,
        },
    ),
    Family("glm4_moe", "Glm4MoeForCausalLM", CORRECTED_IN_GROUPS, layers=DENSE_FIRST),
    Family("glm4_moe_lite", "Glm4MoeLiteForCausalLM", CORRECTED_IN_GROUPS, MLA, layers=DENSE_FIRST),
    Family(
        "glm4v_moe",
        "Glm4vMoeTextModel",
        CORRECTED_IN_GROUPS,
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
                "mrope_section": [2, 1, 1],
            },
        },
        layers=DENSE_FIRST,
        generates=False,
    ),
    Family(
        "glm5_next",
        "Glm5NextTextModel",
        CORRECTED_IN_GROUPS,
        {**MLA, "qk_rope_head_dim": 0},
        layers=(3,),
        generates=False,
    ),
    Family("glm_moe_dsa", "GlmMoeDsaForCausalLM", CORRECTED_IN_GROUPS, MLA, layers=DENSE_FIRST),
    Family("gpt_oss", "GptOssForCausalLM", TOP_K_SOFTMAX),
    Family("granitemoe", "GraniteMoeForCausalLM", TOP_K_SOFTMAX),
    Family("granitemoe_swa", "GraniteMoeSWAForCausalLM", TOP_K_SOFTMAX),
    Family(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        TOP_K_SOFTMAX,
        {
            "mamba_n_heads": 8,
            "mamba_d_state": 8,
            "mamba_d_head": 8,
            "mamba_chunk_size": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    Family("granitemoeshared", "GraniteMoeSharedForCausalLM", TOP_K_SOFTMAX),
    Family("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", RENORMALIZED),
    Family("hy_v3", "HYV3ForCausalLM", replace(CORRECTED, scale="router_scaling_factor"), layers=DENSE_FIRST),
    Family("hy_v4", "HYV4ForCausalLM", CORRECTED_IN_GROUPS, layers=DENSE_FIRST),
    Family("inkling", "InklingForCausalLM", Rule("sigmoid", bias=True, proportional=True)),
    Family("inkling2", "Inkling2ForCausalLM", replace(CORRECTED, scale="route_scale")),
    Family(
        "jamba",
        "JambaForCausalLM",
        SOFTMAX,
        {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
        layers=(1, 3),
    ),
    Family("jetmoe", "JetMoeForCausalLM", TOP_K_SOFTMAX, {"kv_channels": 8}),
    Family(
        "kimi_linear",
        "KimiLinearForCausalLM",
        CORRECTED_IN_GROUPS,
        {**MLA, "layer_types": ["linear_attention", "full_attention"] * 2},
        layers=DENSE_FIRST,
    ),
    Family("kolibri1", "Kolibri1ForCausalLM", Rule("sigmoid of choice by logit", bias=True)),
    Family("laguna", "LagunaForCausalLM", replace(CORRECTED, scale="routed_scaling_factor"), layers=DENSE_FIRST),
    Family(
        "lfm2_moe",
        "Lfm2MoeForCausalLM",
        replace(CORRECTED, scale="routed_scaling_factor"),
        {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
        layers=DENSE_FIRST,
    ),
    Family("llama4", "Llama4ForCausalLM", Rule("sigmoid")),
    Family(
        "longcat_flash",
        "LongcatFlashForCausalLM",
        Rule(bias=True, scale="routed_scaling_factor"),
        {**MLA, "zero_expert_num": 4},
        layers=(0, 1),
    ),
    Family("mellum", "MellumForCausalLM", RENORMALIZED),
    Family("mimo_v2_flash", "MiMoV2FlashForCausalLM", replace(CORRECTED_IN_GROUPS, scale=None), layers=DENSE_FIRST),
    Family("minimax", "MiniMaxForCausalLM", RENORMALIZED),
    Family("minimax_m2", "MiniMaxM2ForCausalLM", CORRECTED),
    Family("minimax_m3_vl", "MiniMaxM3VLForCausalLM", CORRECTED),
    Family(
        "mistral4",
        "Mistral4ForCausalLM",
        Rule(group="best two", renormalize=True, scale="routed_scaling_factor"),
        {
            **MLA,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 64,
            },
        },
        layers=DENSE_FIRST,
    ),
    Family(
        "mistral_large4",
        "MistralLarge4TextModel",
        Rule(group="best two", renormalize=True, scale="routed_scaling_factor"),
        MLA,
        layers=DENSE_FIRST,
        generates=False,
    ),
    Family("mixtral", "MixtralForCausalLM", RENORMALIZED),
    Family(
        "muse_spark",
        "MuseSparkTextModel",
        replace(CORRECTED, scale="routed_scaling_factor"),
        {"moe_hidden_size": 32},
        generates=False,
    ),
    Family(
        "nemotron_h",
        "NemotronHForCausalLM",
        CORRECTED_IN_GROUPS,
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
        },
        layers=(1, 3),
    ),
    Family(
        "nllb_moe",
        "NllbMoeForConditionalGeneration",
        RENORMALIZED,
        {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
        top_k=2,
        layers=(1, 3),
        encoder_decoder=True,
    ),
    Family("olmoe", "OlmoeForCausalLM", SOFTMAX),
    Family(
        "openai_privacy_filter",
        "OpenAIPrivacyFilterForTokenClassification",
        replace(TOP_K_SOFTMAX, scale="1 / top_k"),
        generates=False,
    ),
    Family("phimoe", "PhimoeForCausalLM", None, {"num_experts_per_tok": 2}, top_k=2),
    Family("qwen2_moe", "Qwen2MoeForCausalLM", SOFTMAX),
    Family("qwen3_5_moe", "Qwen3_5MoeForCausalLM", RENORMALIZED),
    Family("qwen3_moe", "Qwen3MoeForCausalLM", SOFTMAX),
    Family("qwen3_moe", "Qwen3MoeForCausalLM", RENORMALIZED, {"norm_topk_prob": True}, variant="renormalized"),
    Family("qwen3_next", "Qwen3NextForCausalLM", RENORMALIZED),
    Family("qwen3_omni_moe", "Qwen3OmniMoeThinkerTextModel", RENORMALIZED, generates=False),
    Family("qwen3_vl_moe", "Qwen3VLMoeTextModel", RENORMALIZED, generates=False),
    Family(
        "qwen4_exp",
        "Qwen4ExpForCausalLM",
        RENORMALIZED,
        {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
        },
    ),
    Family("solar_open", "SolarOpenForCausalLM", CORRECTED_IN_GROUPS),
    Family(
        "step3p7",
        "Step3p7TextModel",
        replace(CORRECTED, scale="routed_scaling_factor"),
        {"sliding_window": 8},
        layers=(3,),
        generates=False,
    ),
    Family(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        None,
        {
            "d_kv": 8,
            "num_sparse_encoder_layers": 2,
            "num_sparse_decoder_layers": 2,
            "expert_capacity": 2,
            "decoder_start_token_id": 0,
        },
        top_k=1,
        layers=(1, 3),
        encoder_decoder=True,
    ),
    Family(
        "unlimited_ocr",
        "UnlimitedOcrTextModel",
        replace(SOFTMAX, scale="routed_scaling_factor"),
        {**MLA, "mlp_layer_types": ["dense"] + ["sparse"] * 3},
        layers=DENSE_FIRST,
        generates=False,
    ),
    Family("zaya", "ZayaForCausalLM", Rule(bias=True), {"num_experts_per_tok": 1}, top_k=1),
]
