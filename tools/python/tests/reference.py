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
    the name of the factor on the weights; `proportional` says that weights are known up to a factor a token.
    """

    score: str = "softmax"
    bias: bool = False
    group: str | None = None
    renormalize: bool = False
    scale: str | None = None
    proportional: bool = False


def choose(
    rule: Rule,
    logits: np.ndarray,
    top_k: int,
    bias: np.ndarray | None = None,
    groups: tuple[int, int] = (1, 1),
    scale: float = 1.0,
    table: list[list[int]] | None = None,
) -> tuple[list[list[int]], list[list[float]]]:
    """Experts and weights of every token, `[tokens][top_k]`, in the order of the choice.

    With a `table` the experts of every token are given, and only their weights are computed.
    """
    chosen, weights = [], []
    for token, row in enumerate(np.asarray(logits, dtype=np.float64)):
        scores = _scores(rule.score, row)
        rating = row.copy() if rule.score == "sigmoid of choice by logit" else scores.copy()
        if rule.bias:
            rating += bias
        if rule.group is not None:
            rating = _within_groups(rating, rule.group, *groups)
        ids = sorted(range(len(rating)), key=lambda expert: -rating[expert])[:top_k]
        if table is not None:
            ids = table[token]
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
    if name in ("sigmoid", "sigmoid of choice by logit"):
        return 1 / (1 + np.exp(-row))
    if name == "sqrt softplus":
        return np.sqrt(np.log1p(np.exp(row)))
    assert name in ("top-k softmax", "probabilities"), name
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


def sparse_mixer(logits: np.ndarray, jitter: float) -> tuple[list[list[int]], list[list[float]]]:
    """Phi-3.5-MoE and GRIN: the best expert, then the best of the rest; each is weighed among those close to it."""
    chosen, weights = [], []
    for row in logits:
        ids: list[int] = []
        values: list[float] = []
        for _ in range(2):
            rest = row.copy()
            rest[ids] = -np.inf
            best = int(rest.argmax())
            close = [e for e in range(len(row)) if (row[best] - row[e]) / max(abs(row[e]), row[best]) <= 2 * jitter]
            values.append(1 / sum(np.exp(row[e] - row[best]) for e in close if e not in ids))
            ids.append(best)
        chosen.append(ids)
        weights.append(values)
    return chosen, weights


def switch(logits: np.ndarray, sequences: int, capacity: int) -> tuple[list[list[int]], list[list[float]]]:
    """Switch: the best expert, unless it has served `capacity` tokens of the sequence."""
    chosen, weights = [], []
    for sequence in logits.reshape(sequences, -1, logits.shape[-1]):
        served = [0] * logits.shape[-1]
        for row in sequence:
            best = int(row.argmax())
            served[best] += 1
            chosen.append([best if served[best] <= capacity else -1])
            weights.append([float(_scores("softmax", row)[best])])
    return chosen, weights


def product_keys(logits: np.ndarray, top_k: int) -> tuple[list[list[int]], list[list[float]]]:
    """Doge: an expert's score is the sum of its row's and its column's key."""
    rows, columns = logits.reshape(2, len(logits), -1)
    scores = (rows[:, :, None] + columns[:, None, :]).reshape(len(logits), -1)
    return choose(Rule("top-k softmax"), scores, top_k)
