"""Which experts a block really uses: those without which its output changes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def used_experts(block: nn.Module, holder: nn.Module, args: tuple, kwargs: dict[str, Any], experts: int) -> torch.Tensor:
    """Whether the output of each token changes when an expert of `holder` is zeroed, `[tokens, experts]`.

    `holder` is the part of `block` whose parameters have a leading dimension of experts, or whose children are them.
    """
    whole = _output(block, args, kwargs)
    used = torch.zeros(len(whole), experts, dtype=torch.bool)
    for expert in range(experts):
        undo = []
        for tensor in _weights_of(holder, expert, experts):
            undo.append((tensor, tensor.clone()))
            tensor.zero_()
        changed = (_output(block, args, kwargs) != whole).any(dim=1)
        for tensor, value in undo:
            tensor.copy_(value)
        used[:, expert] = changed
    return used


def _output(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    args, kwargs = copy.deepcopy((args, kwargs))
    output = block(*args, **kwargs)
    output = output[0] if isinstance(output, tuple) else output
    return output.reshape(-1, output.shape[-1])


def _weights_of(holder: nn.Module, expert: int, experts: int) -> list[torch.Tensor]:
    children = dict(holder.named_children())
    for name in (str(expert), f"expert_{expert}"):
        if name in children:
            return [parameter.data for parameter in children[name].parameters()]
    found = []
    for parameter in holder.parameters():
        if parameter.ndim >= 2 and parameter.shape[0] % experts == 0:
            found.append(parameter.data.view(experts, -1)[expert])
    assert found, f"{type(holder).__name__} holds no weights of experts"
    return found
