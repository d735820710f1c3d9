"""A trace in memory, and trace files of format 1.0 (docs/trace-format.md)."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from .errors import RecorderError

VERSION = "1.0"
PREFILL, DECODE = 0, 1
EMPTY = -1  # in memory; the largest value of the id type in a file
MAX_EXPERTS = 65535
MAX_LAYERS = 65535
MAX_POOL = 1 << 24
MAX_DOMAINS = 32767


@dataclass(frozen=True)
class Layer:
    """Where an MoE layer stands in its model."""

    model_layer: int
    stack: str = "decoder"


@dataclass(eq=False, repr=False)
class Trace:
    """Which experts every token of some sequences used in every MoE layer.

    `experts_of` is int32 `[tokens, layers, top_k]`, best first, -1 where a token used fewer than `top_k` experts;
    `weights` has the same shape, `logits` is `[tokens, layers, experts]` and -inf where a router masks. `token_ids`,
    `predictions` (the token held most likely to come next) and `text` have one entry a token. Lists and tensors become
    arrays.
    """

    layers: list[Layer]
    experts: int
    experts_of: np.ndarray
    offsets: np.ndarray
    phase: np.ndarray
    weights: np.ndarray | None = None
    logits: np.ndarray | None = None
    token_ids: np.ndarray | None = None
    predictions: np.ndarray | None = None
    text: list[bytes] | None = None
    domain: np.ndarray | None = None
    domains: list[str] = field(default_factory=list)
    model: str | None = None

    def __post_init__(self) -> None:
        for name, kinds in _COLUMNS.items():
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, _array(name, value, kinds))

    def __repr__(self) -> str:
        shape = f"{len(self.layers)} layers of {self.experts} experts, top-{self.top_k}"
        return f"Trace({self.sequences} sequences, {self.tokens} tokens, {shape})"

    @property
    def tokens(self) -> int:
        return self.experts_of.shape[0]

    @property
    def top_k(self) -> int:
        return self.experts_of.shape[2]

    @property
    def sequences(self) -> int:
        return len(self.offsets) - 1

    def check(self) -> None:
        """Raises a RecorderError for what a reader of the format would refuse."""
        if self.experts_of.ndim != 3:
            raise RecorderError(f"experts are of shape {self.experts_of.shape}, expected [tokens, layers, top_k]")
        _check_range("layers", len(self.layers), 1, MAX_LAYERS)
        _check_range("experts", self.experts, 1, MAX_EXPERTS)
        _check_range("top_k", self.top_k, 1, self.experts)
        _check_range("layers x experts", len(self.layers) * self.experts, 1, MAX_POOL)
        _check_range("number of domains", len(self.domains), 0, MAX_DOMAINS)
        _check_shape("experts", self.experts_of, (self.tokens, len(self.layers), self.top_k))
        _check_shape("phase", self.phase, (self.tokens,))
        if not np.isin(self.phase, (PREFILL, DECODE)).all():
            raise RecorderError("a phase is neither 0 (prefill) nor 1 (decode)")
        if len(self.offsets) < 1 or self.offsets[0] != 0 or self.offsets[-1] != self.tokens:
            raise RecorderError(f"sequence offsets do not run from 0 to the number of tokens, {self.tokens}")
        if (np.diff(self.offsets) < 0).any():
            raise RecorderError("sequence offsets descend")
        self._check_ids()
        if self.weights is not None:
            _check_shape("weights", self.weights, self.experts_of.shape)
            if not np.isfinite(self.weights[self.experts_of != EMPTY]).all():
                raise RecorderError("a router weight is not finite")
        if self.logits is not None:
            _check_shape("logits", self.logits, (self.tokens, len(self.layers), self.experts))
            if np.isnan(self.logits).any() or np.isposinf(self.logits).any():
                raise RecorderError("a router logit is neither finite nor -inf")
        for name, ids in (("token_ids", self.token_ids), ("predictions", self.predictions)):
            if ids is not None:
                _check_shape(name, ids, (self.tokens,))
                wrong = np.flatnonzero((ids < 0) | (ids >= 1 << 32))
                if len(wrong):
                    raise RecorderError(f"{name}[{wrong[0]}] is {ids[wrong[0]]}, allowed is 0..2^32")
        if self.text is not None and len(self.text) != self.tokens:
            raise RecorderError(f"text has {len(self.text)} entries, expected {self.tokens}")
        if self.domain is not None:
            _check_shape("domain", self.domain, (self.sequences,))
            if self.sequences and not (self.domain.min() >= -1 and self.domain.max() < len(self.domains)):
                raise RecorderError(f"a domain is not -1 or one of the {len(self.domains)} named ones")

    def _check_ids(self) -> None:
        ids = self.experts_of
        bad = (ids < EMPTY) | (ids >= self.experts)
        if bad.any():
            token, layer, slot = np.argwhere(bad)[0]
            raise RecorderError(
                f"expert {ids[token, layer, slot]} at token {token}, layer {layer}, slot {slot}: "
                f"expected one of 0..{self.experts}"
            )
        ordered = np.sort(ids, axis=2)
        twice = ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != EMPTY)).any(axis=2)
        if twice.any():
            token, layer = np.argwhere(twice)[0]
            raise RecorderError(f"token {token} uses an expert twice in layer {layer}: {ids[token, layer].tolist()}")

    def write(self, path: str | os.PathLike) -> Path:
        """Writes the trace as one file, which is complete or absent."""
        path = check_suffix(path)
        self.check()
        dtype = np.uint8 if self.experts <= 255 else np.uint16
        ids = np.where(self.experts_of == EMPTY, np.iinfo(dtype).max, self.experts_of).astype(dtype)
        domain = np.full(self.sequences, -1) if self.domain is None else self.domain
        tensors = {
            "experts": ids,
            "phase": self.phase.astype(np.uint8),
            "domain": domain.astype(np.int16),
            "sequence_offsets": self.offsets.astype(np.int64),
        }
        if self.weights is not None:
            used = self.experts_of != EMPTY
            tensors["weights"] = np.where(used, self.weights, 0).astype(np.float32)
        if self.logits is not None:
            tensors["logits"] = self.logits.astype(np.float32)
        for name, column in (("token_ids", self.token_ids), ("predictions", self.predictions)):
            if column is not None:
                tensors[name] = column.astype(np.uint32)
        if self.text is not None:
            tensors["text"] = np.array(bytearray(b"".join(self.text)), np.uint8)
            tensors["text_offsets"] = np.cumsum([0, *map(len, self.text)], dtype=np.int64)
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        _write_atomically(path, save(tensors, {"moe_trace": self._metadata()}))
        return path

    def _metadata(self) -> str:
        header = {
            "version": VERSION,
            "layers": [{"model_layer": layer.model_layer, "stack": layer.stack} for layer in self.layers],
            "experts": self.experts,
            "top_k": self.top_k,
            "domains": self.domains,
        }
        if self.model is not None:
            header["model"] = self.model
        return json.dumps(header, separators=(",", ":"), ensure_ascii=False)


# The kinds of numbers of a column, as numpy names them.
_COLUMNS = {
    "experts_of": "iu",
    "offsets": "iu",
    "phase": "iub",
    "weights": "f",
    "logits": "f",
    "token_ids": "iu",
    "predictions": "iu",
    "domain": "iu",
}


def _array(name: str, value: Any, kinds: str) -> np.ndarray:
    """A column as an array, given as an array, a list, or a tensor on any device."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise RecorderError(f"{name} is no array of numbers: {error}") from error
    if array.size and array.dtype.kind not in kinds:
        expected = "floating-point numbers" if kinds == "f" else "integers"
        raise RecorderError(f"{name} is of type {array.dtype}, expected {expected}")
    return array if array.size else array.astype(np.float32 if kinds == "f" else np.int64)


def check_suffix(path: str | os.PathLike) -> Path:
    """Refuses a name that promises another format."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise RecorderError(f"{path} would be a safetensors file; name it {path.with_suffix('.safetensors').name}")
    return path


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise RecorderError(f"{name} is {value}, allowed are {low}..={high}")


def _check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != tuple(shape):
        raise RecorderError(f"{name} is of shape {array.shape}, expected {tuple(shape)}")


def _write_atomically(path: Path, data: bytes) -> None:
    """Writes under a temporary name, syncs and renames, so that the name never shows half a file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    # Makes the name durable; not every platform can open a directory.
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
