"""Finding the routers of a model, and reading what they chose.

Most models of transformers 5 hand the chosen experts to a module that holds all experts of a layer,
`experts(hidden_states, top_k_index, top_k_weights)`: what is recorded there is what the MoE block really uses, after
group limits, correction biases and capacities. Routers that decide in another way have a reader of their own.
"""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import RecorderError
from .select import Choice, Select, by_weight, from_weights

# What a forward hook sees: the module, its arguments by name, its output.
Reader = Callable[[nn.Module, dict[str, Any], Any], Choice]


@dataclass(frozen=True)
class Router:
    """One router of a model: a module to hook, and how to read it."""

    name: str
    module: nn.Module | None  # None where the model returns the logits
    read: Reader | None
    experts: int
    model_layer: int
    kind: str | None = None  # "attention" where the experts are not feed-forward networks
    gate: nn.Module | None = None  # the module that returns the logits
    gate_output: int = 0  # which of its outputs they are


@dataclass(frozen=True)
class RouterModules:
    """Routers that the user names: every module whose full name contains a match of the regular expression `pattern`.

    `select` gets the module's output and returns ids and weights, both `[tokens, top_k]`, best first, ids -1 for an
    empty slot; `from_logits` and `from_weights` make such functions. `experts` is the number of experts a layer. The
    first number in a module's name is its layer, or the pattern's group `layer` if it has one.
    """

    pattern: str
    select: Select
    experts: int

    def find(self, model: nn.Module) -> list[Router]:
        routers = []
        for name, module in model.named_modules():
            match = re.search(self.pattern, name)
            if match is not None:
                layer = match.groupdict().get("layer")
                layer = _layer_of(name) if layer is None else int(layer)
                routers.append(Router(name, module, self._read, self.experts, layer))
        return routers

    def _read(self, module: nn.Module, arguments: dict[str, Any], output: Any) -> Choice:
        return Choice(*self.select(output))


@dataclass(frozen=True)
class RouterLogits:
    """The `router_logits` that a decoder-only model returns with `output_router_logits=True`.

    For models whose routers cannot be hooked, and only where the choice is a function of the logits (no correction
    bias, no group limit): `select` is one of `from_logits`. `layers` has the model layer of every entry of the tuple,
    None for an entry to leave out (an attention router); without it, entry i is layer i.
    """

    select: Select
    experts: int
    layers: Sequence[int | None] | None = None


def find_routers(model: nn.Module) -> list[Router]:
    """The routers of a model, vision and audio towers left out."""
    routers = []
    for name, module in model.named_modules():
        if _TOWER.search(name):
            continue
        reader, gate, gate_output = _READERS.get(type(module).__name__), None, 0
        parent = model.get_submodule(name.rpartition(".")[0])
        if type(module).__name__ in _LOGITS:
            gate, gate_output = module, _LOGITS[type(module).__name__]
        elif reader is not None or _is_experts(name, module):
            if reader is None and any(type(child).__name__ in _READERS for child in parent.children()):
                continue
            gate = next((child for child_name, child in parent.named_children() if _ROUTER.search(child_name)), None)
            reader = reader or (_unsorted_experts if _leaves_unsorted(parent, gate) else _experts)
        if reader is _nllb_router:
            _warn_of_wrong_experts(parent)
        if reader is not None:
            experts, layer = _number_of_experts(module), _layer_of(name)
            routers.append(Router(name, module, reader, experts, layer, _kind_of(name), gate, gate_output))
    return routers


_TOWER = re.compile(r"(^|[._])(vision|visual|audio|image|speech|talker|code2wav|token2wav)")
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def _layer_of(name: str) -> int:
    match = _LAYER.search(name)
    if match is None:
        raise RecorderError(f"the name of router {name!r} has no layer number")
    return int(match.group(1))


def _kind_of(name: str) -> str | None:
    return "attention" if re.search(r"attention|attn", name) else None


def _is_experts(name: str, module: nn.Module) -> bool:
    if name.rpartition(".")[2] != "experts" or isinstance(module, nn.ModuleList):
        return False
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) == 3


def _number_of_experts(module: nn.Module) -> int:
    for name in ("num_routed_experts", "num_experts", "num_local_experts", "n_routed_experts"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    raise RecorderError(f"{type(module).__name__} does not say how many experts it has; name it with RouterModules")


_ROUTER = re.compile(r"^(gate|router)$")


def _leaves_unsorted(block: nn.Module, gate: nn.Module | None) -> bool:
    """Whether a block or its router asks for a top-k without order."""
    return any(re.search(r"topk\([^\n]*sorted\s*=\s*False", _source_of(type(module))) for module in (block, gate))


@functools.cache
def _source_of(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def _warn_of_wrong_experts(block: nn.Module) -> None:
    """Some releases of transformers 5 take the router's 0/1 mask for ids: experts 0 and 1 serve every token."""
    if re.search(r"one_hot\(\s*router_mask", _source_of(type(getattr(block, "experts", None)))):
        warnings.warn(
            "this version of transformers computes NLLB-MoE with experts 0 and 1 only; what is recorded is what the "
            "router chose, on hidden states that are wrong after the first MoE layer",
            stacklevel=5,
        )


def _experts(module: nn.Module, arguments: dict[str, Any], output: Any) -> Choice:
    _, ids, weights = list(arguments.values())[:3]
    return Choice(ids, weights)


def _unsorted_experts(module: nn.Module, arguments: dict[str, Any], output: Any) -> Choice:
    return by_weight(_experts(module, arguments, output))


def _longcat_experts(module: nn.Module, arguments: dict[str, Any], output: Any) -> Choice:
    """Ids above the routed experts are identities without weights: nothing is used there."""
    ids, weights = _experts(module, arguments, output)
    return by_weight(Choice(ids.masked_fill(ids >= module.num_routed_experts, -1), weights))


def _skipping_experts(module: nn.Module, arguments: dict[str, Any], output: Any) -> Choice:
    """A token that the router sends to no expert arrives as expert 0 with weight 0."""
    ids, weights = _experts(module, arguments, output)
    return Choice(ids.masked_fill((ids == 0) & (weights == 0), -1), weights)


def _switch_router(module: nn.Module, arguments: dict[str, Any], output: Any) -> Choice:
    """A one-hot row a token, all zero if its expert was full."""
    one_hot, weights, _ = output
    one_hot = one_hot.reshape(-1, one_hot.shape[-1])
    ids = one_hot.argmax(-1, keepdim=True).masked_fill(one_hot.sum(-1, keepdim=True) == 0, -1)
    return Choice(ids, weights.reshape(-1, 1))


def _nllb_router(module: nn.Module, arguments: dict[str, Any], output: Any) -> Choice:
    """Combining weights of all experts, zero for those that were not chosen or full."""
    return Choice(*from_weights(2)(output[1]))


def _llama4_router(module: nn.Module, arguments: dict[str, Any], output: Any) -> Choice:
    """Sigmoid scores of all experts, zero for those that were not chosen; the choice is by logit."""
    scores, logits = output
    ids = logits.topk(module.top_k, dim=-1).indices
    return Choice(ids, scores.gather(-1, ids))


def _top_k_gating(module: nn.Module, arguments: dict[str, Any], output: Any) -> Choice:
    """Slots `token * top_k + rank` sorted by expert, the weights of the sorted slots, and the tokens of each expert."""
    slots, _, weights, tokens_of, _ = output
    experts = torch.arange(len(tokens_of), device=slots.device)
    experts = experts.repeat_interleave(torch.as_tensor(tokens_of, device=slots.device))
    ids = torch.empty_like(slots).scatter_(0, slots, experts)
    weights = torch.empty_like(weights).scatter_(0, slots, weights.detach())
    return Choice(ids.view(-1, module.top_k), weights.view(-1, module.top_k))


def _product_keys(module: nn.Module, arguments: dict[str, Any], output: Any) -> Choice:
    """Two sets of keys whose sums are the scores of the experts."""
    (scores_x, scores_y), (ids_x, ids_y) = output[1].topk(module.num_keys, dim=-1)
    scores = (scores_x.unsqueeze(-1) + scores_y.unsqueeze(-2)).flatten(-2)
    ids = (ids_x.unsqueeze(-1) * module.num_keys + ids_y.unsqueeze(-2)).flatten(-2)
    scores, positions = scores.topk(module.top_k, dim=-1)
    return Choice(ids.gather(-1, positions), scores.softmax(-1))


# Which output of a router with a reader of its own are the logits; where it is not listed, the block's router has them.
_LOGITS = {
    "GraniteMoeTopKGating": 4,
    "JetMoeTopKGating": 4,
    "Llama4Router": 1,
    "NllbMoeTop2Router": 2,
    "SwitchTransformersTop1Router": 2,
}

_READERS: dict[str, Reader] = {
    "DogeCDMoE": _product_keys,
    "GraniteMoeTopKGating": _top_k_gating,
    "JetMoeTopKGating": _top_k_gating,
    "Llama4Router": _llama4_router,
    "LongcatFlashExperts": _longcat_experts,
    "NllbMoeTop2Router": _nllb_router,
    "SwitchTransformersTop1Router": _switch_router,
    "ZayaExperts": _skipping_experts,
}
