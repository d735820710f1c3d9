"""Which experts a block really uses: those without which its output changes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def used_experts(block: nn.Module, holders: list[nn.Module], args: tuple, kwargs: dict[str, Any], experts: int):
    """Whether the output of each token changes when an expert is zeroed, `[tokens, experts]`.

    `holders` are the parts of `block` that hold the experts: their parameters have a leading dimension of experts, or
    their children are the experts.
    """
    whole = _output(block, args, kwargs)
    used = torch.zeros(len(whole), experts, dtype=torch.bool)
    for expert in range(experts):
        weights = [tensor for holder in holders for tensor in _weights_of(holder, expert, experts)]
        assert weights, "no weights of experts found"
        before = [tensor.clone() for tensor in weights]
        for tensor in weights:
            tensor.zero_()
        used[:, expert] = (_output(block, args, kwargs) != whole).any(dim=1)
        for tensor, value in zip(weights, before, strict=True):
            tensor.copy_(value)
    return used


def _output(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    args, kwargs = copy.deepcopy((args, kwargs))
    output = block(*args, **kwargs)
    output = output[0] if isinstance(output, tuple) else output
    return output.reshape(-1, output.shape[-1])


def _weights_of(holder: nn.Module, expert: int, experts: int) -> list[torch.Tensor]:
    child = dict(holder.named_children()).get(f"expert_{expert}")
    if child is not None:
        return [parameter.data for parameter in child.parameters()]
    parameters = [parameter.data for parameter in holder.parameters()]
    return [tensor.view(experts, -1)[expert] for tensor in parameters if tensor.shape[0] % experts == 0]
