"""Which layers of a model have experts: what transformers builds, for every family that has routers.

    python tools/config/families.py > crates/moe-trace/tests/fixtures/model_configs.json

For every family the script writes configurations in several dialects: the class's own defaults, a small model with every
key, and a small model for each key that says something about layers. transformers reads each back, builds it without
memory (device "meta"), and the modules of the model say which layers have experts, how many, and how many a token uses.
The fixture has the text of each configuration and what was found; a test of moe-trace compares its reader with it.
A configuration that transformers refuses is left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from moe_trace_recorder.routers import Router, find_routers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

LAYERS = 6
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "moe_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_hidden_size", "encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim"), 40),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"), 40),
    **dict.fromkeys(("dense_intermediate_size", "intermediate_size_mlp", "prefix_dense_intermediate_size"), 56),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "index_n_heads", "indexer_n_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 10),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts"), 3),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "v_head_dim", "head_dim", "kv_channels"), 8),
    **dict.fromkeys(("qk_nope_head_dim",), 12),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    "num_key_value_heads": 2,
    "vocab_size": 300000,
    "pad_token_id": 0,
    "is_moe": True,
    "enable_moe_block": True,
}

# What a family needs beside the common sizes; None takes a size out.
NEEDS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0},
        "ffn_config": {"moe_num_experts": 10, "moe_top_k": 3, "ffn_hidden_size": 48},
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense"] + ["sparse"] * (LAYERS - 1)},
    "doge": {"num_experts": 16},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [24, 24],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    },
    "glm5_next_text": {"qk_rope_head_dim": 0},
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention"] * 3,
        "mamba_n_heads": 8,
        "mamba_d_state": 8,
        "mamba_d_head": 8,
    },
    "hy_v4_vl_text": {"qk_rope_head_dim": 64},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp", "moe"]},
    "qwen4_exp_text": {
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}

# Keys that say which layers have experts, each in a model of its own, with what else the key needs.
DIALECTS: dict[str, dict[str, Any]] = {
    "first_k_dense_replace": {"first_k_dense_replace": 2},
    "num_dense_layers": {"num_dense_layers": 3},
    "dense_mlp_idx": {"dense_mlp_idx": 2},
    "moe_layer_freq": {"first_k_dense_replace": 1, "moe_layer_freq": 2},
    "moe_layer_freq, a list": {"moe_layer_freq": [0, 1, 1, 0, 1, 1]},
    "mlp_layer_types": {"mlp_layer_types": ["dense", "sparse", "sparse", "dense", "sparse", "sparse"]},
    "decoder_sparse_step": {"decoder_sparse_step": 2},
    "mlp_only_layers": {"mlp_only_layers": [1, 4]},
    "moe_layer_start_index": {"moe_layer_start_index": 1, "moe_layer_end_index": 4, "moe_layer_interval": 2},
    "expert_layer_period": {"expert_layer_period": 3, "expert_layer_offset": 2},
    "moe_layers": {"moe_layers": [0, 3]},
    "interleave_moe_layer_step": {"interleave_moe_layer_step": 3},
    "moe_layers_enum": {"moe_layers_enum": "1,2,5"},
    "hybrid_override_pattern": {"hybrid_override_pattern": "ME*-EM", "layers_block_type": None, "num_hidden_layers": None},
    "num_sparse_encoder_layers": {"num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 2},
    "encoder_sparse_step": {"encoder_sparse_step": 2, "decoder_sparse_step": 3},
}

LAYER = re.compile(r"(?:^|\.)(?:layers|block|blocks|h)\.(\d+)\.")
UNCONCERNED = re.compile(
    "rope_interleave|_bias$|routed_scaling|tie_word|position_embeddings|output_|norm_topk|attention_mult|residual_mult|"
    "use_|word_timestamp|vision|audio|talker|code2wav|token|dropout|_eps|initializer|act$|activation|architectures|"
    "dtype|_coef|_range|version|cache|label|chunk"
)
COUNT = re.compile("expert|topk|top_k|moe_k|num_hidden_layers|n_layers|enable_moe|moe_intermediate|mlp_layer_types")
AS_WRITTEN = "as transformers writes it"
TOP_K_OF_KIND = {"switch_transformers": 1, "nllb-moe": 2}
# What a file must have, because the class has no default that works.
ALWAYS = {
    "dbrx": {"attn_config": {"kv_n_heads": 8, "rope_theta": 10000.0}},
    "deepseek_ocr2_text": {"num_experts_per_tok": 6, "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 30},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8},
    "doge": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma4_text": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 8},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "longcat_flash": {"num_layers": 4},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]},
    "qwen4_exp_text": NEEDS["qwen4_exp_text"] | {"indexer_n_heads": 4, "indexer_head_dim": 256},
}
# Its experts belong to data sets, not to tokens.
NOT_ROUTED = ("vitpose_backbone",)
# Its defaults are not those of the class of its language model, so our reader wants the language model named.
NAMED_ONLY = ("nemo_speechlm",)
# Read only where a key is missing that the class has set before.
DEAD = {("step3p5", "moe_layer_freq, a list")}
# Keys that are tried with every family: who does not read one must be refused where it would mean something.
FOR_ALL = ("first_k_dense_replace", "moe_layer_freq, a list", "mlp_layer_types")

TOWER = re.compile(r"Vision|Audio|Sam|Encoder|Code2|Token2|Speech|CodePred|Timestamp|Talker|Attention|FFN")


def families() -> Iterator[type[PreTrainedConfig]]:
    """The configuration classes of models with experts."""
    seen = set(NOT_ROUTED)
    for package in pkgutil.iter_modules(transformers.models.__path__):
        name = f"transformers.models.{package.name}.configuration_{package.name}"
        if importlib.util.find_spec(name) is None:
            continue
        configuration = importlib.import_module(name)
        if not re.search("expert", inspect.getsource(configuration)):
            continue
        for label, value in vars(configuration).items():
            own = inspect.isclass(value) and issubclass(value, PreTrainedConfig) and value.__module__ == name
            if own and value.model_type and value.model_type not in seen and not TOWER.search(label):
                seen.add(value.model_type)
                yield value


def tiny(config_class: type[PreTrainedConfig], extra: dict[str, Any]) -> dict[str, Any]:
    """The keys of a small model of a class; a size of None takes a key out."""
    default = config_class()
    chosen = {}
    for name, size in SIZES.items():
        try:
            value = getattr(default, name)
        except Exception:  # not an attribute, or one that varies over layers
            continue
        if value is None or isinstance(value, int):
            chosen[name] = size
    if "kv_lora_rank" in chosen:
        chosen["num_key_value_heads"] = 4
    chosen.update(NEEDS.get(config_class.model_type, {}))
    chosen.update(extra)
    return {"model_type": config_class.model_type} | {name: size for name, size in chosen.items() if size is not None}


def read(config_class: type[PreTrainedConfig], keys: dict[str, Any]) -> PreTrainedConfig:
    """What transformers makes of a config.json."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(keys))
        return config_class.from_pretrained(folder)


def written(config: PreTrainedConfig) -> dict[str, Any]:
    """The config.json that transformers writes, without the keys that cannot concern layers."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return kept(json.loads(Path(folder, "config.json").read_text()))


def kept(keys: dict[str, Any]) -> dict[str, Any]:
    return {
        name: kept(value) if isinstance(value, dict) else value
        for name, value in keys.items()
        if name.endswith("model_type") or not UNCONCERNED.search(name)
    }


def build(config: PreTrainedConfig) -> nn.Module:
    """The language model of a configuration, without memory."""
    config = getattr(config, "thinker_config", config)
    text = config if config.is_encoder_decoder else config.get_text_config()
    names = MODEL_MAPPING_NAMES.get(text.model_type)
    if names is not None:
        model_class = getattr(transformers, names if isinstance(names, str) else names[0])
    else:
        package = importlib.import_module(type(text).__module__.replace(".configuration_", ".modeling_"))
        models = [value for value in vars(package).values() if inspect.isclass(value) and issubclass(value, PreTrainedModel)]
        models = [value for value in models if value.config_class is type(text) and value.__name__.endswith("Model")]
        model_class = next(value for value in models if not value.__name__.endswith("PreTrainedModel"))
    with torch.device("meta"):
        return model_class._from_config(text, attn_implementation="eager")


def found(model: nn.Module) -> dict[str, Any]:
    """What the modules of a model say about its experts."""
    stacks = {"decoder": model}
    if model.config.is_encoder_decoder:
        stacks = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    seen: dict[str, Any] = {}
    for stack, module in stacks.items():
        routers = [router for router in find_routers(module) if router.kind is None]
        layers = {int(match.group(1)) for name, _ in module.named_modules() if (match := LAYER.search(name))}
        seen[stack] = {"layers": max(layers) + 1, "moe_layers": [router.model_layer for router in routers]}
        seen.setdefault("experts", routers[0].experts)
        assert all(router.experts == seen["experts"] for router in routers)
        seen["top_k"] = TOP_K_OF_KIND.get(model.config.model_type) or _top_k(module, routers[0])
        seen["weights"] = _weights(module, {router.model_layer for router in routers})
    return seen


def _top_k(module: nn.Module, router: Router) -> int:
    """The top-k of the router, of its block, or of a module in it."""
    block = module.get_submodule(router.name.rpartition(".")[0])
    for part in (router.module, router.gate, block, *block.modules()):
        for name in ("top_k", "num_experts_per_tok", "moe_top_k", "topk"):
            if isinstance(getattr(part, name, None), int):
                return getattr(part, name)
    return module.config.top_k_experts


def _weights(module: nn.Module, moe_layers: set[int]) -> dict[str, int]:
    """Weights in matrices, per layer: of attention, of shared experts, of the network of a dense layer."""
    counts = {"attention": {}, "shared": {}, "dense": {}}
    for name, parameter in module.named_parameters():
        match = LAYER.search(name)
        if match is None or parameter.ndim != 2 or 1 in parameter.shape:
            continue
        layer = int(match.group(1))
        part = "attention" if re.search("attn|attention", name) else "shared" if "shared" in name else "dense"
        if part != "dense" or layer not in moe_layers:
            counts[part][layer] = counts[part].get(layer, 0) + parameter.numel()
    return {part: max(layers.values(), default=0) for part, layers in counts.items()}


def cases() -> Iterator[tuple[str, bool, type[PreTrainedConfig], Callable[[], dict[str, Any]]]]:
    """Name of the dialect, whether the family knows its keys, the class, and what makes the file."""
    for config_class in families():
        inner = {**getattr(config_class, "sub_configs_defaults", {}), **getattr(config_class, "sub_configs", {})}
        part = next((name for name in ("text_config", "thinker_config") if name in inner), None)
        name = {"model_type": config_class.model_type}
        if part is not None:
            text = type(config_class().get_text_config())
            if re.search("expert", inspect.getsource(text)):
                keys = {key: size for key, size in tiny(text, {}).items() if COUNT.search(key)}
                keys = ALWAYS.get(text.model_type, {}) | keys
                nested = {part: keys} if part == "text_config" else {part: {"text_config": keys}}
                if config_class.model_type not in NAMED_ONLY:
                    yield "a language model without a name", True, config_class, partial(dict, name, **nested)
                yield AS_WRITTEN, True, config_class, partial(_written, config_class, nested)
            continue
        yield "the defaults", True, config_class, partial(dict, name, **ALWAYS.get(config_class.model_type, {}))
        yield AS_WRITTEN, True, config_class, partial(_written, config_class, tiny(config_class, {}))
        source = inspect.getsource(config_class)
        modeling = config_class.__module__.replace(".configuration_", ".modeling_")
        if importlib.util.find_spec(modeling) is not None:
            source += inspect.getsource(importlib.import_module(modeling))
        for dialect, extra in DIALECTS.items():
            known = all(re.search(rf"[.\"']{key}\b|^ +{key}:", source, re.M) for key in extra if extra[key] is not None)
            known &= (config_class.model_type, dialect) not in DEAD
            if known or dialect in FOR_ALL:
                yield dialect, known, config_class, partial(tiny, config_class, extra)


def _written(config_class: type[PreTrainedConfig], keys: dict[str, Any]) -> dict[str, Any]:
    return written(config_class(**keys))


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    table = []
    for dialect, known, config_class, make in cases():
        name = config_class.model_type
        try:
            keys = make()
            seen = found(build(read(config_class, keys)))
        except Exception as error:
            print(f"{name}, {dialect}: {type(error).__name__}: {' '.join(str(error).split())[:160]}", file=sys.stderr)
            continue
        table.append({"family": name, "dialect": dialect, "known": known, "config": keys} | seen)
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in table)
    print(f"[\n{lines}\n]")


if __name__ == "__main__":
    main()
