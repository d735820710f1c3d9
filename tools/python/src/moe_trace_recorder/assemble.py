"""From the tokens of sequences to the columns of a trace."""

from __future__ import annotations

import numpy as np

from .batch import Rows
from .text import TokenText
from .trace import EMPTY, Layer, Trace


def assemble(
    sequences: list[Rows], layers: list[Layer], experts: int, model: str | None, text: TokenText | None
) -> Trace:
    """Joins the tokens of sequences."""
    domains = list(dict.fromkeys(rows.domain for rows in sequences if rows.domain is not None))
    columns = {
        "experts": _join(sequences, "experts", (len(layers), 1), EMPTY),
        "weights": _join(sequences, "weights", (len(layers), 1), 0.0),
        "logits": _join(sequences, "logits", (len(layers), experts), 0.0),
    }
    token_ids = _join(sequences, "token_ids", (), 0)
    return Trace(
        layers=layers,
        experts=experts,
        experts_of=columns["experts"].astype(np.int32),
        offsets=np.cumsum([0] + [sum(rows.tokens) for rows in sequences], dtype=np.int64),
        phase=_join(sequences, "phase", (), 0).astype(np.uint8),
        weights=columns["weights"],
        logits=columns["logits"],
        token_ids=token_ids,
        predictions=_join(sequences, "predictions", (), 0),
        text=None if text is None or token_ids is None else [text(token_id) for token_id in token_ids.tolist()],
        domain=np.array([-1 if rows.domain is None else domains.index(rows.domain) for rows in sequences], np.int64),
        domains=domains,
        model=model,
    )


def _join(sequences: list[Rows], name: str, shape: tuple[int, ...], fill: float) -> np.ndarray | None:
    """One column of all sequences, of which an empty one would have `shape`; None if a sequence lacks it."""
    columns = [rows.column(name) for rows in sequences]
    if any(column is None for column in columns):
        return None
    parts = [part for column in columns for part in column]
    if not parts:
        return np.zeros((0, *shape)) if name in ("experts", "phase") else None
    if parts[0].ndim == 3:
        # Top-k may differ from forward to forward.
        width = max(part.shape[2] for part in parts)
        parts = [np.pad(part, ((0, 0), (0, 0), (0, width - part.shape[2])), constant_values=fill) for part in parts]
    return np.concatenate(parts)
