"""Models with a vision tower beside the language model: their text is recorded, called as a whole."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from family import tiny_config
from torch import nn

from moe_trace_recorder import Recorder

VISION = {
    **dict.fromkeys(("depth", "num_hidden_layers"), 2),
    **dict.fromkeys(("hidden_size", "out_hidden_size"), 32),
    **dict.fromkeys(("num_heads", "num_attention_heads"), 4),
    "intermediate_size": 48,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "mrope_section": [2, 1, 1]}
MODELS = [
    ("aria", "AriaForConditionalGeneration", {}, [0, 1, 2, 3]),
    ("glm4v_moe", "Glm4vMoeForConditionalGeneration", {"rope_parameters": ROPE}, [1, 2, 3]),
    ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", {}, [0, 1, 2, 3]),
    ("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", {}, [0, 1, 2, 3]),
]


def build(name: str, model: str, sizes: dict[str, Any]) -> nn.Module:
    model_class = getattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), model)
    config_class = model_class.config_class
    default = config_class()
    vision = {size: value for size, value in VISION.items() if hasattr(default.vision_config, size)}
    config = config_class(
        text_config=tiny_config(type(default.text_config), sizes), vision_config=type(default.vision_config)(**vision)
    )
    torch.manual_seed(0)
    return model_class._from_config(config, attn_implementation="eager", experts_implementation="eager").eval()


@pytest.mark.parametrize(("name", "model", "sizes", "layers"), MODELS, ids=[model[0] for model in MODELS])
def test_text_through_the_whole_model(name: str, model: str, sizes: dict[str, Any], layers: list[int]) -> None:
    whole = build(name, model, sizes)
    prompt, mask = torch.randint(3, 99, (2, 5)), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    recorder = Recorder(whole)
    assert not any("vision" in router or "visual" in router for router in recorder.routers)
    with recorder:
        tokens = whole.generate(
            input_ids=prompt,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=3,
            max_new_tokens=3,
            suppress_tokens=[0],
        )
    trace = recorder.trace()
    trace.check()
    assert [layer.model_layer for layer in trace.layers] == layers
    assert trace.phase.tolist() == [0] * 5 + [1] * 2 + [0] * 3 + [1] * 2
    assert trace.token_ids.tolist() == tokens[0, :-1].tolist() + tokens[1, 2:-1].tolist()
