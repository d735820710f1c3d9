"""Recorder: PyTorch hooks on the routers of a model, and the trace they make."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .batch import Batch, Rows, Step, domains_of, end_ids_of, read_step
from .errors import RecorderError
from .routers import Router, RouterLogits, RouterModules, find_routers
from .select import Choice
from .trace import EMPTY, Layer, Trace


class Recorder:
    """Records the routing of a model while it runs, inside of a `with` block.

    A forward without a past begins as many sequences as the batch has rows; forwards on its cache continue them.
    Padding is left out. A forward of one token on a cache is decode, everything else is prefill. Sequences get the
    domain that `domain` has when they begin: a name, one name a row, or None.

    Routers are found in the model, or named: `RouterModules` for models whose code is not part of transformers,
    `RouterLogits` for the logits that a model returns. Encoder, decoder and attention routers become traces of
    their own. `weights=False` leaves the router weights out, `logits=True` adds the logits of all experts.

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
        end_token_ids: Collection[int] | None = None,
    ):
        self.domain: str | Sequence[str | None] | None = None
        self._name = name
        self._weights = weights
        self._logits = logits
        end_ids = end_ids_of(model) if end_token_ids is None else frozenset(end_token_ids)
        stacks = [_StackRecorder(self, stack, module, routers, end_ids) for stack, module in _stacks(model, routers)]
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
        self._hooks: list[Any] = []

    @property
    def routers(self) -> list[str]:
        """Names of the modules that are read, in order of layers."""
        return [router.name for stack in self._stacks for router in stack.routers()]

    def __enter__(self) -> Recorder:
        if self._hooks:
            raise RecorderError("this recorder is recording already")
        for stack in self._stacks:
            self._hooks += stack.attach()
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
            traces.update(stack.traces(self._name))
        return traces

    def trace(self) -> Trace:
        """What was recorded of a model that has one kind of routers."""
        traces = self.traces()
        if len(traces) != 1:
            raise RecorderError(f"there are {len(traces)} traces ({', '.join(traces)}), use traces()")
        return next(iter(traces.values()))

    def save(self, path: str | os.PathLike) -> list[Path]:
        """Writes `path`, or one file a trace: `trace.encoder.safetensors`, `trace.decoder.safetensors`."""
        path = Path(path)
        traces = self.traces()
        if not traces:
            raise RecorderError("nothing was recorded")
        for trace in traces.values():
            trace.check()
        if len(traces) == 1:
            return [trace.write(path) for trace in traces.values()]
        return [trace.write(path.with_name(f"{path.stem}.{kind}{path.suffix}")) for kind, trace in traces.items()]


class _StackRecorder:
    """Records the routers of one stack: an encoder, a decoder, or the whole of a decoder-only model."""

    def __init__(
        self,
        recorder: Recorder,
        stack: str,
        module: nn.Module,
        source: RouterModules | RouterLogits | None,
        end_ids: frozenset[int],
    ):
        self.module = module
        self._recorder = recorder
        self._stack = stack
        self._end_ids = end_ids
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
            if self._recorder._logits:
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
        arguments = _arguments(module, args, kwargs)
        self._step, self._choices, self._logits = None, {}, {}
        step = read_step(arguments)
        if step.past == 0:
            # It takes the place of the sequences in progress when the forward has succeeded.
            self._next = Batch(list(self.groups), step, domains_of(self._recorder.domain, step.rows), self._end_ids)
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
        self._batch.cache = _cache_of(output, step.cache)

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
        if self._recorder._weights and all(choice.weights is not None for choice in choices):
            columns["weights"] = _to_host([choice.weights.detach().float() for choice in choices], top_k, 0.0)
        if self._recorder._logits:
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

    def traces(self, name: str | None) -> dict[str, Trace]:
        sequences = self._sequences + (self._batch.sequences if self._batch is not None else [])
        if not sequences:
            if self._outside:
                raise RecorderError(
                    f"routers ran {self._outside} times outside of a forward of {type(self.module).__name__}: "
                    "call the model that was given to the recorder"
                )
            return {}
        return {
            group: _assemble(
                [sequence[group] for sequence in sequences],
                [Layer(router.model_layer, self._stack) for router in routers],
                max(router.experts for router in routers),
                name if name is None or group == self._stack else f"{name} ({group})",
            )
            for group, routers in self.groups.items()
        }


def _stacks(model: nn.Module, source: RouterModules | RouterLogits | None) -> list[tuple[str, nn.Module]]:
    """The modules whose forwards define the tokens."""
    if isinstance(source, RouterLogits):
        # With its head, a model would compute a loss from the logits, which fails on a cache.
        return [("decoder", getattr(model, "base_model", model))]
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return [("encoder", model.get_encoder()), ("decoder", model.get_decoder())]
    return [("decoder", model)]


def _routers_of(module: nn.Module, stack: str, source: RouterModules | RouterLogits | None) -> list[Router]:
    if isinstance(source, RouterLogits):
        # Their number is known at the first forward.
        return []
    routers = find_routers(module) if source is None else source.find(module)
    return sorted(routers, key=lambda router: router.model_layer)


def _logits_router(layer: int, source: RouterLogits) -> Router:
    return Router(f"router_logits of layer {layer}", None, None, source.experts, layer)


def _arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(inspect.signature(module.forward).parameters, args)) | kwargs


def _cache_of(output: Any, given: Any) -> Any:
    cache = getattr(output, "past_key_values", None)
    cache = given if cache is None else cache
    return cache if hasattr(cache, "get_seq_length") else None


def _refuse_reordering(*_: Any) -> None:
    raise RecorderError("beam search exchanges the rows of a batch and cannot be recorded")


def _to_host(columns: list[Tensor], top_k: int, fill: float) -> np.ndarray:
    """Stacks the layers' `[tokens, k]` into `[tokens, layers, top_k]`, with one copy a device."""
    device = columns[0].device
    columns = [nn.functional.pad(column, (0, top_k - column.shape[1]), value=fill).to(device) for column in columns]
    return torch.stack(columns, dim=1).cpu().numpy()


def _assemble(sequences: list[Rows], layers: list[Layer], experts: int, model: str | None) -> Trace:
    domains = list(dict.fromkeys(rows.domain for rows in sequences if rows.domain is not None))
    columns = {
        "experts": _join(sequences, "experts", (len(layers), 1), EMPTY),
        "weights": _join(sequences, "weights", (len(layers), 1), 0.0),
        "logits": _join(sequences, "logits", (len(layers), experts), 0.0),
    }
    return Trace(
        layers=layers,
        experts=experts,
        experts_of=columns["experts"].astype(np.int32),
        offsets=np.cumsum([0] + [sum(rows.tokens) for rows in sequences], dtype=np.int64),
        phase=_join(sequences, "phase", (), 0).astype(np.uint8),
        weights=columns["weights"],
        logits=columns["logits"],
        token_ids=_join(sequences, "token_ids", (), 0),
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
