"""The token that a model holds most likely to come next, read from the logits that it returns."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .batch import arguments_of
from .stack import StackRecorder


class Predictions:
    """Hooks on a model that give the logits of every forward to the stack that it ends with.

    Where a caller asks for the logits of a few tokens (`logits_to_keep`, as `generate` does for a prompt), the model is
    made to compute all of them, and the caller still gets those that it asked for.
    """

    def __init__(self, model: nn.Module, stack: StackRecorder):
        self._model = model
        self._stack = stack
        self._keep: Any = 0
        self._shortens = "logits_to_keep" in inspect.signature(model.forward).parameters

    def attach(self) -> list[Any]:
        """The hooks; they must come after those of the stack."""
        return [
            self._model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self._model.register_forward_hook(self._end, with_kwargs=True),
        ]

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        self._keep = kwargs.get("logits_to_keep", 0) if self._shortens else 0
        return None if _all(self._keep) else (args, {**kwargs, "logits_to_keep": 0})

    def _end(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        logits = _logits(output, arguments_of(module, args, kwargs))
        self._stack.predicted(logits)
        if _all(self._keep):
            return None
        kept = slice(-self._keep, None) if isinstance(self._keep, int) else self._keep
        return _with_logits(output, logits, logits[:, kept, :])


def _all(keep: Any) -> bool:
    return isinstance(keep, int) and keep == 0


def _logits(output: Any, arguments: dict[str, Any]) -> Any:
    """The logits of an output, which is a tuple (with the loss first, if there are labels) on request."""
    if isinstance(output, tuple):
        index = 0 if arguments.get("labels") is None else 1
        return output[index] if index < len(output) else None
    return getattr(output, "logits", None)


def _with_logits(output: Any, old: Any, new: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(new if entry is old else entry for entry in output)
    output.logits = new
    return output
