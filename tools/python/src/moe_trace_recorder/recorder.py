"""Recorder: PyTorch hooks on the routers of a model, and the trace they make."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .batch import end_ids_of
from .errors import RecorderError
from .predictions import Predictions
from .routers import RouterLogits, RouterModules
from .stack import Options, StackRecorder
from .text import TokenText
from .trace import Trace, check_suffix
from .versions import warn_of_untested_transformers


class Recorder:
    """Records the routing of a model while it runs, inside of a `with` block.

    A forward without a past begins as many sequences as the batch has rows; forwards on its cache continue them.
    Padding is left out. A forward of one token on a cache is decode, everything else is prefill. Sequences get the
    domain that `domain` has when they begin: a name, one name a row, or None.

    Routers are found in the model, or named: `RouterModules` for models whose code is not part of transformers,
    `RouterLogits` for the logits that a model returns. Encoder, decoder and attention routers become traces of
    their own. `weights=False` leaves the router weights out, `logits=True` adds the router logits of all experts,
    `predictions=True` the token that the model held most likely to come next after each token (of a decoder), and a
    `tokenizer` the text of every token.

    A batch feeds rows that have ended until the others are done: from the first of `end_token_ids` that a row decodes,
    it is left out. They are by default the end and padding tokens of the model's generation configuration; a batch of
    one row never ends.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str | None = None,
        routers: RouterModules | RouterLogits | None = None,
        weights: bool = True,
        logits: bool = False,
        predictions: bool = False,
        tokenizer: Any = None,
        end_token_ids: Collection[int] | None = None,
    ):
        warn_of_untested_transformers()
        end_ids = end_ids_of(model) if end_token_ids is None else frozenset(end_token_ids)
        text = None if tokenizer is None else TokenText(tokenizer)
        self._options = Options(name, weights, logits, end_ids, text)
        stacks = [StackRecorder(self._options, stack, module, routers) for stack, module in _stacks(model, routers)]
        self._stacks = [stack for stack in stacks if stack.groups]
        if not self._stacks and isinstance(routers, RouterModules):
            raise RecorderError(f"no module's name matches {routers.pattern!r}")
        if not self._stacks:
            raise RecorderError(
                f"{type(model).__name__} has no router that this recorder knows; name its routers with RouterModules"
            )
        unrated = [router.name for stack in self._stacks for router in stack.routers() if router.gate is None]
        if logits and unrated and not isinstance(routers, RouterLogits):
            raise RecorderError(f"where the logits of router {unrated[0]} are is not known")
        # The last stack is the one that predicts.
        self._predictions = Predictions(model, stacks[-1]) if predictions else None
        self._hooks: list[Any] = []

    @property
    def domain(self) -> str | Sequence[str | None] | None:
        """The domain of sequences that begin from now on."""
        return self._options.domain

    @domain.setter
    def domain(self, domain: str | Sequence[str | None] | None) -> None:
        self._options.domain = domain

    @property
    def routers(self) -> list[str]:
        """Names of the modules that are read, in order of layers."""
        return [router.name for stack in self._stacks for router in stack.routers()]

    def __enter__(self) -> Recorder:
        if self._hooks:
            raise RecorderError("this recorder is recording already")
        for stack in self._stacks:
            self._hooks += stack.attach()
        if self._predictions is not None:
            self._hooks += self._predictions.attach()
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for stack in self._stacks:
            stack.close()

    def clear(self) -> None:
        """Forgets what was recorded."""
        for stack in self._stacks:
            stack.clear()

    def traces(self) -> dict[str, Trace]:
        """What was recorded, by `decoder`, `encoder` and `attention`."""
        traces = {}
        for stack in self._stacks:
            traces.update(stack.traces())
        return traces

    def trace(self) -> Trace:
        """What was recorded of a model that has one kind of routers."""
        traces = self.traces()
        if not traces:
            raise RecorderError("nothing was recorded")
        if len(traces) != 1:
            raise RecorderError(f"there are {len(traces)} traces ({', '.join(traces)}), use traces()")
        return next(iter(traces.values()))

    def save(self, path: str | os.PathLike) -> list[Path]:
        """Writes `path`, or one file a trace: `trace.encoder.safetensors`, `trace.decoder.safetensors`."""
        path = check_suffix(path)
        traces = self.traces()
        if not traces:
            raise RecorderError("nothing was recorded")
        for trace in traces.values():
            trace.check()
        if len(traces) == 1:
            return [trace.write(path) for trace in traces.values()]
        return [trace.write(path.with_name(f"{path.stem}.{kind}{path.suffix}")) for kind, trace in traces.items()]


def _stacks(model: nn.Module, source: RouterModules | RouterLogits | None) -> list[tuple[str, nn.Module]]:
    """The modules whose forwards define the tokens."""
    if isinstance(source, RouterLogits):
        # With its head, a model would compute a loss from the logits, which fails on a cache.
        return [("decoder", getattr(model, "base_model", model))]
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return [("encoder", model.get_encoder()), ("decoder", model.get_decoder())]
    return [("decoder", model)]
