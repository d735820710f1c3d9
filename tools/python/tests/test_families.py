"""Every family of transformers, router by router.

A model runs on a padded batch while its blocks and routers are watched by hooks of the test. What was recorded has to
agree with the published rule applied to the router's logits, and with the experts that the block needs for its
output.
"""

from __future__ import annotations

import subprocess
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ablation import used_experts
from families import FAMILIES
from family import VOCABULARY, Family
from reference import choose, product_keys, sparse_mixer, switch
from safetensors import safe_open
from torch import nn

from moe_trace_recorder import Recorder, Trace

# The routers that return their choice in the order of the corrected scores. Every other order is that of the weights.
IN_ORDER_OF_CHOICE = {
    "afmoe", "beam", "ernie4_5_moe", "ernie4_5_vl_moe", "kolibri1", "laguna", "lfm2_moe", "phimoe", "zaya",
}  # fmt: skip
LOGITS_OUTPUT = {"jetmoe": 4, "llama4": 1, "nllb_moe": 2, "switch_transformers": 2}


# Identity experts, full experts, a skipped layer.
LEAVES_SLOTS_EMPTY = {"longcat_flash", "switch_transformers", "zaya"}


@dataclass
class Watched:
    """One router of a run, and what hooks of the test saw of it."""

    group: str
    layer: int
    block: nn.Module
    gate: nn.Module
    holders: list[nn.Module]
    call: tuple[tuple, dict[str, Any]] | None = None
    logits: np.ndarray | None = None


@dataclass
class Run:
    family: Family
    model: nn.Module
    traces: dict[str, Trace]
    routers: list[Watched]
    batch: dict[str, torch.Tensor]
    kept: dict[str, np.ndarray]  # by group: which of the batch's flat tokens are real
    warned: bool


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.label)
def run(request: pytest.FixtureRequest) -> Run:
    family: Family = request.param
    model = family.build()
    torch.manual_seed(1)
    batch = {
        "input_ids": torch.randint(3, VOCABULARY, (2, 6)),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]),
    }
    if family.encoder_decoder:
        batch["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        recorder = Recorder(model, name=family.name, logits=family.name != "doge")
    warned = any("experts 0 and 1" in str(warning.message) for warning in caught)
    routers = [
        _watched(model, group, layer, name)
        for group, names in _names_by_group(recorder, family).items()
        for layer, name in enumerate(names)
    ]
    hooks = [hook for router in routers for hook in _watch(family, router)]
    recorder.domain = ["first", None]
    with recorder, torch.no_grad():
        model(**batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    real = batch["attention_mask"].bool().reshape(-1).numpy()
    kept = dict.fromkeys(recorder.traces(), real)
    if family.encoder_decoder:
        kept["decoder"] = np.ones(8, dtype=bool)
    return Run(family, model, recorder.traces(), routers, batch, kept, warned)


def _names_by_group(recorder: Recorder, family: Family) -> dict[str, list[str]]:
    """Full names of the routers: the two stacks of an encoder-decoder have the same ones."""
    names = recorder.routers
    if family.encoder_decoder:
        half = len(names) // 2
        return {"encoder": names[:half], "decoder": names[half:]}
    attention = [name for name in names if "attention" in name]
    mlp = [name for name in names if name not in attention]
    return {"decoder": mlp, **({"attention": attention} if attention else {})}


def _watched(model: nn.Module, group: str, layer: int, name: str) -> Watched:
    stack = {"encoder": model.get_encoder, "decoder": model.get_decoder}[group]() if _is_pair(model) else model
    module, parent = stack.get_submodule(name), stack.get_submodule(name.rpartition(".")[0])
    if type(module).__name__ == "DogeCDMoE":
        return Watched(group, layer, module, module.router_gate, [module.down_embed, module.up_embed])
    gate = getattr(parent, "gate", None) or parent.router
    if type(gate).__name__ == "JetMoeTopKGating":
        holders = [parent.input_linear, parent.output_linear]
        block = stack.get_submodule(name.rsplit(".", 2)[0]) if group == "attention" else parent
        return Watched(group, layer, block, gate, holders)
    if name.endswith("text_moe.experts"):
        parent = stack.get_submodule(name.rsplit(".", 2)[0])
        return Watched(group, layer, parent, gate, [module])
    return Watched(group, layer, parent, gate, [parent.experts])


def _is_pair(model: nn.Module) -> bool:
    return bool(model.config.is_encoder_decoder)


def _watch(family: Family, router: Watched) -> list[Any]:
    def call(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        router.call = (args, dict(kwargs))

    def rate(module: nn.Module, args: tuple, output: Any) -> None:
        logits = output if isinstance(output, torch.Tensor) else output[LOGITS_OUTPUT.get(family.name, 0)]
        router.logits = logits.detach().double().reshape(-1, logits.shape[-1]).numpy()

    return [router.block.register_forward_pre_hook(call, with_kwargs=True), router.gate.register_forward_hook(rate)]


def test_geometry_and_columns(run: Run) -> None:
    family = run.family
    groups = {"encoder", "decoder"} if family.encoder_decoder else {"decoder"}
    assert set(run.traces) == groups | ({"attention"} if family.name == "jetmoe" else set())
    empty = np.concatenate([(trace.experts_of < 0).reshape(-1) for trace in run.traces.values()])
    assert empty.any() == (family.name in LEAVES_SLOTS_EMPTY)
    assert not empty.all()
    for group, trace in run.traces.items():
        trace.check()
        assert tuple(layer.model_layer for layer in trace.layers) == family.layers
        assert {layer.stack for layer in trace.layers} == {"encoder" if group == "encoder" else "decoder"}
        assert (trace.experts, trace.top_k) == (family.experts, family.top_k)
        assert not trace.phase.any()
        assert trace.domains == ["first"] and trace.domain.tolist() == [0, -1]
        ids = run.batch["decoder_input_ids" if family.encoder_decoder and group == "decoder" else "input_ids"]
        kept = run.kept[group].reshape(ids.shape)
        assert trace.token_ids.tolist() == ids.numpy()[kept].tolist()
        assert np.diff(trace.offsets).tolist() == kept.sum(axis=1).tolist()


def test_choices_follow_the_rule(run: Run) -> None:
    for router in run.routers:
        trace, kept = run.traces[router.group], run.kept[router.group]
        chosen, weights = _expected(run, router, trace)
        assert len(chosen) == len(kept)
        for token, flat in enumerate(np.flatnonzero(kept)):
            recorded = trace.experts_of[token, router.layer].tolist()
            got = trace.weights[token, router.layer].astype(np.float64)
            want = _ordered(run.family, router, chosen[flat], weights[flat], trace.experts)
            assert recorded == want[0], f"layer {router.layer}, token {token}"
            filled = np.array(recorded) >= 0
            if getattr(run.family.rule, "proportional", False):
                got = got / got.sum() * sum(want[1])
            np.testing.assert_allclose(got[filled], np.array(want[1])[filled], rtol=2e-5, atol=1e-7)


def _expected(run: Run, router: Watched, trace: Trace) -> tuple[list[list[int]], list[list[float]]]:
    name, rule, logits = run.family.name, run.family.rule, router.logits
    modules = [router.gate, router.block, getattr(run.model.config, "text_config", run.model.config)]
    if name == "phimoe":
        return sparse_mixer(logits, run.model.config.router_jitter_noise)
    if name == "doge":
        return product_keys(logits, trace.top_k)
    if name == "switch_transformers":
        return switch(logits, sequences=2, capacity=run.model.config.expert_capacity)
    bias, table = None, None
    if getattr(router.block, "is_hash", False):  # the experts of a token are looked up
        table = router.gate.tid2eid[run.batch["input_ids"].reshape(-1)].tolist()
        rule = replace(rule, bias=False)
    if rule.bias:
        tensors = [item for module in modules[:2] for item in [*module.named_buffers(), *module.named_parameters()]]
        endings = ("correction_bias", "expert_bias", "balancing_biases")
        bias = next(tensor for tensor_name, tensor in tensors if tensor_name.endswith(endings))
        bias = bias.detach().double().reshape(-1).numpy()
        assert bias.any()
    scale = 1.0
    if rule.scale == "1 / top_k":
        scale = 1 / trace.top_k
    elif rule.scale is not None:
        scale = next(float(value) for module in modules if (value := getattr(module, rule.scale, None)) is not None)
    return choose(rule, logits, trace.top_k, bias=bias, groups=(4, 2), scale=scale, table=table)


def _ordered(
    family: Family, router: Watched, ids: list[int], weights: list[float], experts: int
) -> tuple[list[int], list[float]]:
    """The order in which the recorder has to put them; experts without weights of their own are empty slots."""
    pairs = [(expert, weight) if expert < experts else (-1, 0.0) for expert, weight in zip(ids, weights)]
    if family.name not in IN_ORDER_OF_CHOICE and not getattr(router.block, "is_hash", False):
        pairs.sort(key=lambda pair: (pair[0] < 0, -pair[1]))
    return [expert for expert, _ in pairs], [weight for _, weight in pairs]


def test_choices_are_what_the_block_uses(run: Run) -> None:
    for router in run.routers:
        trace, kept = run.traces[router.group], run.kept[router.group]
        used = used_experts(router.block, router.holders, *router.call, trace.experts).numpy()[kept]
        if run.warned:
            # transformers takes the router's mask for ids: the recorded choice is the router's, its block is wrong.
            assert (used == (np.arange(trace.experts) < 2)).all()
            continue
        recorded = np.zeros_like(used)
        for token, row in enumerate(trace.experts_of[:, router.layer]):
            recorded[token, row[row >= 0]] = True
        np.testing.assert_array_equal(recorded, used, err_msg=f"layer {router.layer}")


def test_logits_are_those_of_the_router(run: Run) -> None:
    if run.family.name == "doge":
        pytest.skip("its logits rate keys, not experts")
    for router in run.routers:
        trace, kept = run.traces[router.group], run.kept[router.group]
        logits = router.logits[kept][:, : trace.experts]
        np.testing.assert_allclose(trace.logits[:, router.layer], logits, rtol=1e-6)


def test_file_reads_back(run: Run, traces_dir: Path) -> None:
    for group, trace in run.traces.items():
        path = trace.write(traces_dir / f"{run.family.label}.{group}.safetensors")
        with safe_open(path, "np") as file:
            ids = file.get_tensor("experts").astype(int)
            assert np.where(ids == 255, -1, ids).tolist() == trace.experts_of.tolist()
            assert file.get_tensor("sequence_offsets").tolist() == trace.offsets.tolist()
            assert file.get_tensor("weights").dtype == np.float32


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.generates], ids=lambda family: family.label)
def test_generation(family: Family, traces_dir: Path) -> None:
    """Prefill and decode of a padded batch; the same tokens in one forward have the same experts."""
    model = family.build()
    torch.manual_seed(2)
    prompt = torch.randint(3, VOCABULARY, (2, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorder = Recorder(model, name=family.name)
    with recorder:
        tokens = model.generate(
            input_ids=prompt,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=4,
            max_new_tokens=4,
            suppress_tokens=[0],
        )
    recorder.save(traces_dir / f"{family.label}.generated.safetensors")
    trace = recorder.traces()["decoder"]
    # The last token is never fed; a decoder of its own begins with one start token.
    given = [1, 1] if family.encoder_decoder else [5, 3]
    assert np.diff(trace.offsets).tolist() == [count + 3 for count in given]
    assert trace.phase.tolist() == [0] * given[0] + [1] * 3 + [0] * given[1] + [1] * 3
    fed = torch.cat([tokens[0, -given[0] - 4 : -1], tokens[1, -given[1] - 4 : -1]])
    assert trace.token_ids.tolist() == fed.tolist()
    if family.name in SEES_LATER_TOKENS:
        return
    with recorder, torch.no_grad():
        recorder.clear()
        whole = torch.cat([mask, torch.ones(2, 3, dtype=mask.dtype)], dim=1)
        if family.encoder_decoder:
            model(input_ids=prompt, attention_mask=mask, decoder_input_ids=tokens[:, :-1])
        else:
            positions = (whole.cumsum(1) - 1).clamp(min=0)
            model(input_ids=tokens[:, :-1], attention_mask=whole, position_ids=positions, use_cache=False)
    again = recorder.traces()["decoder"]
    assert again.token_ids.tolist() == trace.token_ids.tolist()
    assert np.sort(again.experts_of).tolist() == np.sort(trace.experts_of).tolist()


# Models whose routing of a token depends on the tokens after it in the same forward.
SEES_LATER_TOKENS = {
    "doge",  # splits the logits of a forward across its tokens
    "switch_transformers",  # an expert serves so many tokens of a sequence
}


def test_the_rust_reader_accepts_every_file(run_validator: str, traces_dir: Path) -> None:
    """Runs last: on all files that the tests above wrote."""
    files = sorted(map(str, traces_dir.glob("*.safetensors")))
    assert files
    result = subprocess.run([run_validator, *files], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == len(files)
