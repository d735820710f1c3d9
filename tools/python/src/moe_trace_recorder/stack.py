"""The hooks on one stack of a model, and what they saw."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .assemble import assemble
from .batch import Batch, Rows, Step, arguments_of, cache_of, domains_of, read_step
from .errors import RecorderError
from .routers import Router, RouterLogits, RouterModules, find_routers
from .select import Choice
from .text import TokenText
from .trace import EMPTY, Layer, Trace


@dataclass
class Options:
    """What is recorded of every stack."""

    name: str | None
    weights: bool
    logits: bool
    end_ids: frozenset[int]
    text: TokenText | None
    domain: str | Sequence[str | None] | None = None


class StackRecorder:
    """Records the routers of one stack: an encoder, a decoder, or the whole of a decoder-only model."""

    def __init__(
        self,
        options: Options,
        stack: str,
        module: nn.Module,
        source: RouterModules | RouterLogits | None,
    ):
        self.module = module
        self._options = options
        self._stack = stack
        self._returned = source if isinstance(source, RouterLogits) else None
        self.groups: dict[str, list[Router]] = {} if self._returned is None else {stack: []}
        for router in _routers_of(module, stack, source):
            self.groups.setdefault(router.kind or stack, []).append(router)
        self._group_of = {router.name: group for group, routers in self.groups.items() for router in routers}
        self._refused: Any = None
        self.clear()

    def routers(self) -> list[Router]:
        return [router for group in self.groups.values() for router in group]

    def clear(self) -> None:
        self._sequences: list[dict[str, Rows]] = []
        self._batch: Batch | None = None
        self._next: Batch | None = None
        self._step: Step | None = None
        self._choices: dict[str, Choice] = {}
        self._logits: dict[str, Tensor] = {}
        self._outside = 0
        self._guard(None)

    def attach(self) -> list[Any]:
        hooks = [
            self.module.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.module.register_forward_hook(self._end, with_kwargs=True),
        ]
        for router in self.routers() if self._returned is None else ():
            if self._options.logits:
                hooks.append(router.gate.register_forward_hook(partial(self._rated, router)))
            # Once a model: a signature costs more than reading the choice.
            names = list(inspect.signature(router.module.forward).parameters)
            hook = partial(self._routed, router, names)
            hooks.append(router.module.register_forward_hook(hook, with_kwargs=True))
        return hooks

    def close(self) -> None:
        """Ends the sequences in progress, and a forward that failed."""
        self._close_batch()
        self._step = None
        self._guard(None)

    def _close_batch(self) -> None:
        if self._batch is not None:
            self._sequences += self._batch.sequences
            self._batch = None

    def _begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        arguments = arguments_of(module, args, kwargs)
        self._step, self._choices, self._logits = None, {}, {}
        step = read_step(arguments)
        if step.past == 0:
            # It takes the place of the sequences in progress when the forward has succeeded.
            self._next = Batch(list(self.groups), step, domains_of(self._options.domain, step.rows), self._options.end_ids)
        elif self._batch is None:
            raise RecorderError(f"the forward continues {step.past} tokens that were not recorded")
        else:
            self._batch.check(step)
        self._step = step
        self._guard(step.cache)
        return (args, {**kwargs, "output_router_logits": True}) if self._returned is not None else None

    def _routed(
        self, router: Router, names: list[str], module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._step is None:
            self._outside += 1
            return
        if router.name in self._choices:
            raise RecorderError(f"router {router.name} ran twice in one forward")
        given = dict(zip(names, args)) | kwargs
        arguments = {name: given[name] for name in names if name in given}
        with torch.no_grad():
            self._choices[router.name] = router.read(module, arguments, output)

    def _rated(self, router: Router, module: nn.Module, args: tuple, output: Any) -> None:
        if self._step is not None:
            logits = output if isinstance(output, Tensor) else output[router.gate_output]
            self._logits[router.name] = logits.detach().float().reshape(-1, logits.shape[-1])[:, : router.experts]

    def _end(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        step, self._step = self._step, None
        if step is None:
            return
        if self._returned is not None:
            self._read_logits(output)
        choices = {}
        for group, routers in self.groups.items():
            self._check_order(group, routers)
            choices[group] = self._stack_choices(step, [self._choices[router.name] for router in routers], routers)
        self._choices, self._logits = {}, {}
        if step.past == 0:
            self._close_batch()
            self._batch = self._next
        self._batch.append(step, choices)
        self._batch.cache = _cache_after(output, step.cache)

    def predicted(self, logits: Any) -> None:
        """Reads the predictions of the forward that has just ended from its logits, `[rows, columns, vocabulary]`."""
        step = None if self._batch is None else self._batch.last
        if step is None:
            return
        expected = (step.rows, step.columns)
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else "none"
        if len(shape) != 3 or shape[:2] != expected:
            raise RecorderError(f"the model's logits are {shape}, expected {expected} tokens for predictions")
        self._batch.extend("predictions", logits.detach().argmax(-1).cpu().numpy())

    def _check_order(self, group: str, routers: list[Router]) -> None:
        expected = [router.name for router in routers]
        ran = [name for name in self._choices if self._group_of[name] == group]
        if ran != expected:
            missing = [name for name in expected if name not in ran]
            if missing:
                raise RecorderError(
                    f"router {missing[0]} did not run in this forward; is its block replaced by a kernel?"
                )
            raise RecorderError(f"routers ran in the order {ran}, their layers say {expected}")

    def _stack_choices(self, step: Step, choices: list[Choice], routers: list[Router]) -> dict[str, np.ndarray]:
        """The columns of one group, `[rows, columns, layers, ...]`."""
        tokens = step.rows * step.columns
        for choice, router in zip(choices, routers):
            if choice.ids.ndim != 2 or choice.ids.shape[0] != tokens:
                raise RecorderError(
                    f"router {router.name} chose experts of shape {tuple(choice.ids.shape)}, expected [{tokens}, top_k]"
                )
            if choice.ids.is_floating_point():
                raise RecorderError(f"router {router.name} chose experts of type {choice.ids.dtype}, expected integers")
            if choice.weights is not None and choice.weights.shape != choice.ids.shape:
                raise RecorderError(
                    f"router {router.name} returned weights of shape {tuple(choice.weights.shape)} "
                    f"for experts of shape {tuple(choice.ids.shape)}"
                )
        top_k = max(choice.ids.shape[1] for choice in choices)
        columns = {"experts": _to_host([choice.ids.to(torch.int32) for choice in choices], top_k, EMPTY)}
        if self._options.weights and all(choice.weights is not None for choice in choices):
            columns["weights"] = _to_host([choice.weights.detach().float() for choice in choices], top_k, 0.0)
        if self._options.logits:
            columns["logits"] = self._stack_logits(tokens, routers)
        return {name: column.reshape(step.rows, step.columns, *column.shape[1:]) for name, column in columns.items()}

    def _stack_logits(self, tokens: int, routers: list[Router]) -> np.ndarray:
        for router in routers:
            shape = tuple(self._logits[router.name].shape) if router.name in self._logits else "none"
            if shape != (tokens, router.experts):
                raise RecorderError(f"router {router.name} has logits {shape}, expected {(tokens, router.experts)}")
        return _to_host([self._logits[router.name] for router in routers], routers[0].experts, 0.0)

    def _read_logits(self, output: Any) -> None:
        logits = getattr(output, "router_logits", None)
        if logits is None:
            raise RecorderError("the model returned no router_logits")
        layers = self._returned.layers if self._returned.layers is not None else range(len(logits))
        if len(layers) != len(logits):
            raise RecorderError(f"the model returned router_logits of {len(logits)} layers, {len(layers)} are named")
        group = self.groups[self._stack]
        if not group:
            group += [_logits_router(layer, self._returned) for layer in layers if layer is not None]
            self._group_of = {router.name: self._stack for router in group}
        kept = [entry for entry, layer in zip(logits, layers) if layer is not None]
        for router, entry in zip(group, kept):
            if entry.shape[-1] != router.experts:
                raise RecorderError(f"{router.name} has {entry.shape[-1]} experts, expected {router.experts}")
            self._choices[router.name] = Choice(*self._returned.select(entry))
            self._logits[router.name] = entry.detach().float().reshape(-1, entry.shape[-1])

    def _guard(self, cache: Any) -> None:
        """Makes beam search fail on the cache in use: it exchanges rows, and the rows of a trace cannot follow."""
        if self._refused is not None and self._refused is not cache:
            vars(self._refused).pop("reorder_cache", None)
            self._refused = None
        if hasattr(cache, "reorder_cache"):
            cache.reorder_cache = _refuse_reordering
            self._refused = cache

    def traces(self) -> dict[str, Trace]:
        sequences = self._sequences + (self._batch.sequences if self._batch is not None else [])
        if not sequences:
            if self._outside:
                raise RecorderError(
                    f"routers ran {self._outside} times outside of a forward of {type(self.module).__name__}: "
                    "call the model that was given to the recorder"
                )
            return {}
        return {
            group: assemble(
                [sequence[group] for sequence in sequences],
                [Layer(router.model_layer, self._stack) for router in routers],
                max(router.experts for router in routers),
                self._model_name(group),
                self._options.text,
            )
            for group, routers in self.groups.items()
        }

    def _model_name(self, group: str) -> str | None:
        name = self._options.name
        return name if name is None or group == self._stack else f"{name} ({group})"


def _routers_of(module: nn.Module, stack: str, source: RouterModules | RouterLogits | None) -> list[Router]:
    if isinstance(source, RouterLogits):
        # Their number is known at the first forward.
        return []
    routers = find_routers(module) if source is None else source.find(module)
    return sorted(routers, key=lambda router: router.model_layer)


def _logits_router(layer: int, source: RouterLogits) -> Router:
    return Router(f"router_logits of layer {layer}", None, None, source.experts, layer)


def _cache_after(output: Any, given: Any) -> Any:
    """The cache that later forwards continue: what the model returned, or what it was given."""
    parts = dict(enumerate(output)) if isinstance(output, (tuple, list)) else dict(getattr(output, "items", dict)())
    caches = [part for part in parts.values() if hasattr(part, "get_seq_length")]
    cache = cache_of(dict(enumerate(caches))) if caches else given
    return cache if hasattr(cache, "get_seq_length") else None


def _refuse_reordering(*_: Any) -> None:
    raise RecorderError("beam search exchanges the rows of a batch and cannot be recorded")


def _to_host(columns: list[Tensor], top_k: int, fill: float) -> np.ndarray:
    """Stacks the layers' `[tokens, k]` into `[tokens, layers, top_k]`, with one copy a device."""
    device = columns[0].device
    columns = [nn.functional.pad(column, (0, top_k - column.shape[1]), value=fill).to(device) for column in columns]
    return torch.stack(columns, dim=1).cpu().numpy()
