"""Functions from what a router module returns to the experts it chose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """The experts of some tokens: ids `[tokens, top_k]`, best first, -1 for an empty slot, and their weights."""

    ids: Tensor
    weights: Tensor | None = None


Select = Callable[[Any], "Choice | tuple[Tensor, Tensor]"]


def from_logits(top_k: int, *, score: str = "softmax", renormalize: bool = False) -> Select:
    """Chooses the `top_k` highest of router logits `[..., experts]`.

    The weights are `softmax` over all experts, softmax over the chosen ones (`top_k_softmax`) or `sigmoid`; with
    `renormalize` those of a token are divided by their sum.
    """
    scores = {
        "softmax": lambda logits, ids: logits.softmax(-1).gather(-1, ids),
        "top_k_softmax": lambda logits, ids: logits.gather(-1, ids).softmax(-1),
        "sigmoid": lambda logits, ids: logits.sigmoid().gather(-1, ids),
    }
    if score not in scores:
        raise ValueError(f"score is {score!r}, expected one of {sorted(scores)}")

    def select(logits: Tensor) -> Choice:
        logits = logits.detach().float().reshape(-1, logits.shape[-1])
        ids = logits.topk(top_k, dim=-1).indices
        weights = scores[score](logits, ids)
        if renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return Choice(ids, weights)

    return select


def from_weights(top_k: int) -> Select:
    """Chooses the non-zero ones of combining weights `[..., experts]`; a slot without a weight is empty."""

    def select(weights: Tensor) -> Choice:
        weights = weights.detach().float().reshape(-1, weights.shape[-1])
        values, ids = weights.topk(top_k, dim=-1)
        return Choice(ids.masked_fill(values == 0, -1), values)

    return select


def by_weight(choice: Choice) -> Choice:
    """Puts the experts of each token in the order of their weights, highest first; equal ones keep their order."""
    if choice.weights is None:
        return choice
    weights = choice.weights.float().masked_fill(choice.ids < 0, -torch.inf)
    order = weights.argsort(dim=-1, descending=True, stable=True)
    return Choice(choice.ids.gather(-1, order), choice.weights.gather(-1, order))
