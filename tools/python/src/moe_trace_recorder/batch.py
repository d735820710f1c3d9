"""The sequences of a batch: which tokens are real, which forward they belong to, which phase they are in."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import RecorderError
from .trace import DECODE, PREFILL


@dataclass
class Rows:
    """Tokens of one sequence, in parts of one forward each."""

    domain: str | None
    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    def append(self, columns: dict[str, np.ndarray]) -> None:
        """Appends the tokens of one forward."""
        for name, column in columns.items():
            self.parts.setdefault(name, []).append(column)
        self.tokens.append(len(columns["experts"]))

    def column(self, name: str) -> list[np.ndarray] | None:
        """The parts of a column, None if a part lacks it."""
        parts = self.parts.get(name, [])
        return parts if len(parts) == len(self.tokens) else None


@dataclass
class Step:
    """The tokens of one forward."""

    rows: int
    columns: int
    past: int
    real: np.ndarray  # bool [rows, columns]
    token_ids: np.ndarray | None  # [rows, columns]
    cache: Any

    @property
    def phase(self) -> int:
        return DECODE if self.past > 0 and self.columns == 1 else PREFILL


def arguments_of(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward by name."""
    return dict(zip(inspect.signature(module.forward).parameters, args)) | kwargs


def read_step(arguments: dict[str, Any]) -> Step:
    """Reads the arguments of a model's forward."""
    ids, embeddings = arguments.get("input_ids"), arguments.get("inputs_embeds")
    if not isinstance(ids, Tensor) and not isinstance(embeddings, Tensor):
        raise RecorderError("the forward has neither input_ids nor inputs_embeds")
    shape = ids.shape if isinstance(ids, Tensor) else embeddings.shape[:2]
    if len(shape) != 2:
        raise RecorderError(f"input_ids are of shape {tuple(shape)}, expected [batch, tokens]")
    rows, columns = shape
    cache = cache_of(arguments)
    mask = arguments.get("attention_mask")
    past = cached_tokens(cache)
    real = np.ones((rows, columns), dtype=bool)
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != rows or mask.shape[1] < columns:
            what = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            raise RecorderError(
                f"attention_mask is {what}, expected a tensor [batch, tokens] that covers the input_ids, "
                f"{tuple(shape)}; for generate(), use the dynamic cache"
            )
        past = max(past, mask.shape[1] - columns)
        real = (mask[:, -columns:] != 0).cpu().numpy()
    _check_positions(arguments, past, columns)
    token_ids = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else None
    return Step(rows, columns, past, real, token_ids, cache)


# Names that a key-value cache has had, which an argument must not have unread.
_CACHE_NAMES = ("cache", "past_key_values", "past_key_value", "cache_params", "past")


def cache_of(arguments: dict[str, Any]) -> Any:
    """The key-value cache among named arguments or outputs, whatever its name: what tells a length, or keys and values."""
    found = [value for value in arguments.values() if hasattr(value, "get_seq_length") or _is_legacy_cache(value)]
    if any(value is not found[0] for value in found):
        kinds = ", ".join(type(value).__name__ for value in found)
        raise RecorderError(f"the forward has several key-value caches ({kinds}), expected one")
    for name in _CACHE_NAMES:
        value = arguments.get(name)
        empty = value is None or isinstance(value, (tuple, list)) and not value
        if not empty and not any(value is known for known in found):
            raise RecorderError(f"{name} is a {type(value).__name__}, expected a cache of transformers")
    return found[0] if found else None


def _is_legacy_cache(value: Any) -> bool:
    """Keys and values of every layer, `[rows, heads, tokens, width]`, as older releases hand them on."""
    layer = value[0] if isinstance(value, (tuple, list)) and value else None
    return (
        isinstance(layer, (tuple, list))
        and len(layer) >= 2
        and all(isinstance(part, Tensor) and part.ndim == 4 for part in layer[:2])
    )


def cached_tokens(cache: Any) -> int:
    """Tokens in a key-value cache of any generation of transformers."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        try:
            return int(cache.get_seq_length())
        except ValueError:  # of layers that keep no keys: only the attention mask tells
            return 0
    return int(cache[0][0].shape[-2])


def _check_positions(arguments: dict[str, Any], past: int, columns: int) -> None:
    """Refuses a token that stands behind others that no cache and no mask tells of."""
    for name in ("position_ids", "cache_position"):
        positions = arguments.get(name)
        if past == 0 and columns == 1 and isinstance(positions, Tensor) and positions.numel() and (positions > 0).all():
            raise RecorderError(
                f"{name} is {int(positions.min())} for one token without a past; "
                "the recorder does not see the cache that the forward continues"
            )


class Batch:
    """Sequences that are in progress: those of the last forward without a past, and all that continue it."""

    def __init__(self, groups: Sequence[str], step: Step, domains: Sequence[str | None], end_ids: frozenset[int]):
        self.sequences = [{group: Rows(domain) for group in groups} for domain in domains]
        self.columns = 0
        self.rows = step.rows
        self.cache: Any = None
        self.last: Step | None = None
        self._kept: list[np.ndarray] = []
        self._end_ids = end_ids

    def check(self, step: Step) -> None:
        """Refuses a forward that does not continue this batch."""
        if step.rows != self.rows:
            raise RecorderError(f"the forward continues {step.rows} sequences, {self.rows} are in progress")
        if step.past != self.columns:
            raise RecorderError(
                f"the forward continues {step.past} tokens, {self.columns} were recorded; "
                "shortened caches (assisted generation) cannot be recorded"
            )
        if step.cache is not None and self.cache is not None and step.cache is not self.cache:
            raise RecorderError("the forward continues another cache than that of the sequences in progress")

    def append(self, step: Step, choices: dict[str, dict[str, np.ndarray]]) -> None:
        """Appends the columns of every group, all of shape `[rows, columns, layers, ...]`."""
        self.last = step
        self._kept = [step.real[index] & self._alive(index, step) for index in range(step.rows)]
        for index, (sequence, keep) in enumerate(zip(self.sequences, self._kept)):
            for group, columns in choices.items():
                kept = {name: column[index][keep] for name, column in columns.items()}
                kept["phase"] = np.full(int(keep.sum()), step.phase, dtype=np.uint8)
                if step.token_ids is not None:
                    kept["token_ids"] = step.token_ids[index][keep]
                sequence[group].append(kept)
        self.columns += step.columns

    def extend(self, name: str, column: np.ndarray) -> None:
        """Adds a column `[rows, columns]` to the tokens that were appended last."""
        for index, (sequence, keep) in enumerate(zip(self.sequences, self._kept)):
            for rows in sequence.values():
                rows.parts.setdefault(name, []).append(column[index][keep])

    def _alive(self, index: int, step: Step) -> bool:
        """Whether a row still generates: after its end token, a batch feeds it padding until the others are done."""
        groups = self.sequences[index].values()
        ended = any(rows.ended for rows in groups) and step.phase == DECODE
        if step.phase == DECODE and step.token_ids is not None and self.rows > 1:
            ended |= int(step.token_ids[index, 0]) in self._end_ids
        for rows in groups:
            rows.ended = ended
        return not ended


def domains_of(domain: str | Sequence[str | None] | None, rows: int) -> list[str | None]:
    """One domain a row, from one for all or a list."""
    if domain is None or isinstance(domain, str):
        return [domain] * rows
    if len(domain) != rows:
        raise RecorderError(f"there are {len(domain)} domains for a batch of {rows} sequences")
    return list(domain)


def end_ids_of(model: Any) -> frozenset[int]:
    """Tokens that a generating model feeds only to rows that have ended."""
    config = getattr(model, "generation_config", None) or getattr(model, "config", None)
    ids: set[int] = set()
    for name in ("eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, torch.Tensor):
            value = value.tolist()
        ids.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return frozenset(ids)
