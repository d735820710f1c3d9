"""What a router has to choose, from its logits: the published rules, in numpy, one token at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rule:
    """How a family turns logits into experts and weights.

    `score` is the function of the logits; `bias` whether a correction bias takes part in the choice (not in the
    weights); `group` how a group of experts is rated, by its best expert or by the sum of its best two, where only
    the best groups may be chosen from; `renormalize` whether the weights of a token are made to sum to 1; `scale`
    the name of the factor on the weights.
    """

    score: str = "softmax"
    bias: bool = False
    group: str | None = None
    renormalize: bool = False
    scale: str | None = None


def choose(
    rule: Rule,
    logits: np.ndarray,
    top_k: int,
    bias: np.ndarray | None = None,
    groups: tuple[int, int] = (1, 1),
    scale: float = 1.0,
) -> tuple[list[list[int]], list[list[float]]]:
    """Experts and weights of every token, `[tokens][top_k]`, in the order of the choice."""
    chosen, weights = [], []
    for row in np.asarray(logits, dtype=np.float64):
        scores = _scores(rule.score, row)
        rating = scores + bias if rule.bias else scores.copy()
        if rule.group is not None:
            rating = _within_groups(rating, rule.group, *groups)
        ids = sorted(range(len(rating)), key=lambda expert: -rating[expert])[:top_k]
        if rule.score == "top-k softmax":
            values = np.exp(row[ids] - row[ids].max())
            values /= values.sum()
        else:
            values = scores[ids]
        if rule.renormalize:
            values = values / values.sum()
        chosen.append(ids)
        weights.append((values * scale).tolist())
    return chosen, weights


def _scores(name: str, row: np.ndarray) -> np.ndarray:
    if name == "softmax":
        exponentials = np.exp(row - row.max())
        return exponentials / exponentials.sum()
    if name == "sigmoid":
        return 1 / (1 + np.exp(-row))
    if name == "sqrt softplus":
        return np.sqrt(np.log1p(np.exp(row)))
    assert name == "top-k softmax", name
    return row


def _within_groups(rating: np.ndarray, how: str, number: int, kept: int) -> np.ndarray:
    """The rating, with all groups but the best ones out of reach."""
    groups = rating.reshape(number, -1)
    best = np.sort(groups, axis=1)[:, ::-1]
    of_group = best[:, 0] if how == "best" else best[:, :2].sum(axis=1)
    kept_groups = np.argsort(-of_group, kind="stable")[:kept]
    limited = np.full_like(groups, -np.inf)
    limited[kept_groups] = groups[kept_groups]
    return limited.reshape(-1)
