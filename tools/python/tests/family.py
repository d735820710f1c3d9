"""How a tiny random model of a family of transformers is made."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
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
