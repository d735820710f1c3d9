"""Batches, padding, caches and generation, on one model whose routing depends on nothing else."""

from __future__ import annotations

import importlib.metadata
import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from family import VOCABULARY
from torch import nn
from transformers.utils import ModelOutput

from moe_trace_recorder import Recorder, RecorderError, Trace
from moe_trace_recorder.batch import cache_of, cached_tokens, read_step

FAMILY = next(family for family in FAMILIES if family.name == "mixtral")
PROMPTS = [[5, 17, 42, 8, 99], [33, 4, 61], [12, 90, 7, 55]]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return FAMILY.build()


def padded(side: str) -> dict[str, torch.Tensor]:
    width = max(map(len, PROMPTS))
    ids, mask = torch.zeros(len(PROMPTS), width, dtype=torch.long), torch.zeros(len(PROMPTS), width, dtype=torch.long)
    for row, prompt in enumerate(PROMPTS):
        columns = slice(width - len(prompt), width) if side == "left" else slice(0, len(prompt))
        ids[row, columns], mask[row, columns] = torch.tensor(prompt), 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def returned_cache(output: ModelOutput) -> Any:
    """The cache that a model returns, under the name that its release of transformers has for it."""
    return next(output[name] for name in ("cache", "past_key_values") if name in output)


def record(model: nn.Module, *batches: dict[str, torch.Tensor]) -> Trace:
    recorder = Recorder(model)
    with recorder, torch.no_grad():
        for batch in batches:
            model(**batch)
    return recorder.trace()


def sequence(trace: Trace, index: int) -> Trace:
    tokens = slice(trace.offsets[index], trace.offsets[index + 1])
    ids, phase = trace.experts_of[tokens], trace.phase[tokens]
    offsets = np.array([0, len(ids)])
    return Trace(trace.layers, trace.experts, ids, offsets, phase, token_ids=trace.token_ids[tokens])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_sequences_alone(model: nn.Module, side: str) -> None:
    together = record(model, padded(side))
    alone = record(model, *({"input_ids": torch.tensor([prompt])} for prompt in PROMPTS))
    assert together.offsets.tolist() == alone.offsets.tolist() == [0, 5, 8, 12]
    assert together.token_ids.tolist() == alone.token_ids.tolist() == sum(PROMPTS, [])
    assert together.experts_of.tolist() == alone.experts_of.tolist()
    np.testing.assert_allclose(together.weights, alone.weights, rtol=1e-4)


def test_embeddings_are_recorded_without_token_ids(model: nn.Module) -> None:
    ids = torch.tensor([PROMPTS[0]])
    trace = record(model, {"inputs_embeds": model.get_input_embeddings()(ids)})
    assert trace.token_ids is None
    assert trace.experts_of.tolist() == record(model, {"input_ids": ids}).experts_of.tolist()


def test_a_loop_over_a_cache_is_one_sequence(model: nn.Module) -> None:
    """A prompt, two decoded tokens, a second turn, a decoded token; without an attention mask."""
    steps = [[5, 17, 42], [8], [99], [33, 4], [61]]
    recorder = Recorder(model)
    with recorder, torch.no_grad():
        cache = None
        for step in steps:
            cache = returned_cache(model(input_ids=torch.tensor([step]), past_key_values=cache, use_cache=True))
    trace = recorder.trace()
    assert trace.sequences == 1
    assert trace.phase.tolist() == [0, 0, 0, 1, 1, 0, 0, 1]
    assert trace.token_ids.tolist() == sum(steps, [])
    whole = record(model, {"input_ids": torch.tensor([sum(steps, [])])})
    assert trace.experts_of.tolist() == whole.experts_of.tolist()


def test_rows_that_end_early_are_not_padded(model: nn.Module) -> None:
    """In a batch, a row that has ended is fed its end token and padding until the others are done."""
    batch = padded("left")
    with torch.no_grad():
        free = model.generate(**batch, do_sample=False, min_new_tokens=6, max_new_tokens=6, suppress_tokens=[0, 2])
    width = batch["input_ids"].shape[1]
    # The second token that row 1 generates becomes an end token, unless another row has it before.
    end = int(free[1, width + 1])
    recorder = Recorder(model)
    old = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [2, end]
    try:
        recorder = Recorder(model)
        with recorder:
            together = model.generate(**batch, do_sample=False, max_new_tokens=6, suppress_tokens=[0])
            alone = []
            for prompt in PROMPTS:
                ids = torch.tensor([prompt])
                mask = torch.ones_like(ids)
                alone.append(
                    model.generate(
                        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=6, suppress_tokens=[0]
                    )[0]
                )
    finally:
        model.generation_config.eos_token_id = old
    assert together.shape[1] > width + 2, "some row goes on after row 1"
    trace = recorder.trace()
    assert trace.sequences == 6
    for row in range(3):
        batched, single = sequence(trace, row), sequence(trace, 3 + row)
        assert single.token_ids.tolist() == alone[row].tolist()[:-1]
        assert batched.token_ids.tolist() == single.token_ids.tolist()
        assert batched.phase.tolist() == single.phase.tolist()
        assert batched.experts_of.tolist() == single.experts_of.tolist()
    assert len(sequence(trace, 1).token_ids) == len(PROMPTS[1]) + 1


def test_domains_and_empty_sequences(model: nn.Module) -> None:
    recorder = Recorder(model, name="tiny")
    ids = torch.tensor([PROMPTS[0], PROMPTS[0]])
    with recorder, torch.no_grad():
        recorder.domain = "maths"
        model(input_ids=ids)
        recorder.domain = ["code", None]
        model(input_ids=ids, attention_mask=torch.tensor([[0] * 5, [1] * 5]))
        recorder.domain = ["code"]
        with pytest.raises(RecorderError, match="1 domains for a batch of 2"):
            model(input_ids=ids)
    trace = recorder.trace()
    assert trace.model == "tiny"
    assert trace.domains == ["maths", "code"]
    assert trace.domain.tolist() == [0, 0, 1, -1]
    assert np.diff(trace.offsets).tolist() == [5, 5, 0, 5]


def test_a_forward_that_fails_leaves_no_tokens(model: nn.Module) -> None:
    recorder = Recorder(model)
    with recorder, torch.no_grad():
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[VOCABULARY + 1]]))
        model(input_ids=torch.tensor([PROMPTS[0]]))
        with pytest.raises(IndexError):
            model(input_ids=torch.tensor([[VOCABULARY + 1]]))
    assert recorder.trace().token_ids.tolist() == PROMPTS[0]
    assert recorder.trace().sequences == 1


def test_end_tokens_can_be_kept(model: nn.Module) -> None:
    """A loop that decodes over the end token: a row alone always keeps it, a batch if the caller says so."""
    recorders = [Recorder(model), Recorder(model, end_token_ids=())]
    for rows, kept in ((1, (6, 6)), (2, (3, 6))):
        for recorder, tokens in zip(recorders, kept, strict=True):
            recorder.clear()
            with recorder, torch.no_grad():
                cache = None
                for step in ([5, 17, 42], [model.generation_config.eos_token_id], [8], [9]):
                    ids = torch.tensor([step] * rows)
                    cache = returned_cache(model(input_ids=ids, past_key_values=cache, use_cache=True))
            assert np.diff(recorder.trace().offsets).tolist() == [tokens] * rows


def test_what_cannot_be_recorded_is_refused(model: nn.Module) -> None:
    ids = torch.tensor([PROMPTS[0]])
    recorder = Recorder(model)
    with torch.no_grad():
        cache = returned_cache(model(input_ids=ids, use_cache=True))
        with recorder:
            with pytest.raises(RecorderError, match="continues 5 tokens that were not recorded"):
                model(input_ids=ids[:, :1], past_key_values=cache)
            model(input_ids=ids)
            with pytest.raises(RecorderError, match="another cache"):
                model(input_ids=ids[:, :1], past_key_values=cache)
            cache = returned_cache(model(input_ids=ids, use_cache=True))
            cache.crop(-2)
            with pytest.raises(RecorderError, match="continues 3 tokens, 5 were recorded"):
                model(input_ids=ids[:, :1], past_key_values=cache)
            with pytest.raises(RecorderError, match="attention_mask is of shape"):
                model(input_ids=ids, attention_mask=torch.ones(1, 1, 5, 5))
            with pytest.raises(RecorderError, match="is recording already"):
                recorder.__enter__()
            with pytest.raises(RecorderError, match="beam search"):
                model.generate(input_ids=ids, num_beams=2, do_sample=False, max_new_tokens=4)
            with pytest.raises(RecorderError, match="continues 2 sequences, 1 are in progress"):
                cache = returned_cache(model(input_ids=ids, use_cache=True))
                cache.batch_repeat_interleave(2)
                model(input_ids=ids[:, :1].repeat(2, 1), past_key_values=cache)
    # Without a recorder the model does what it did.
    assert model.generate(input_ids=ids, num_beams=2, do_sample=False, max_new_tokens=4).shape[0] == 1


def test_a_cache_that_was_recorded_may_be_used_for_beam_search_later(model: nn.Module) -> None:
    ids = torch.tensor([PROMPTS[0]])
    recorder = Recorder(model)
    with torch.no_grad():
        with recorder:
            cache = returned_cache(model(input_ids=ids, use_cache=True))
            model(input_ids=ids[:, :1], past_key_values=cache)
            with pytest.raises(RecorderError, match="beam search"):
                cache.reorder_cache(torch.tensor([0]))
            recorder.clear()
            cache.reorder_cache(torch.tensor([0]))
        cache.reorder_cache(torch.tensor([0]))


def test_models_without_routers_and_forwards_beside_the_recorder(model: nn.Module) -> None:
    with pytest.raises(RecorderError, match="Linear has no router that this recorder knows"):
        Recorder(nn.Linear(2, 2))
    recorder = Recorder(model)
    with pytest.raises(RecorderError, match="nothing was recorded"):
        recorder.save("never.safetensors")
    with recorder, torch.no_grad():
        model.model(input_ids=torch.tensor([PROMPTS[0]]))
    with pytest.raises(RecorderError, match="routers ran 4 times outside of a forward of MixtralForCausalLM"):
        recorder.save("never.safetensors")


def test_recording_changes_nothing(model: nn.Module) -> None:
    batch = padded("left")
    with torch.no_grad():
        before = model(**batch).logits
        with Recorder(model, logits=True):
            during = model(**batch).logits
        assert torch.equal(before, during) and torch.equal(before, model(**batch).logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_clear_and_weights_off(model: nn.Module) -> None:
    recorder = Recorder(model, weights=False)
    with recorder, torch.no_grad():
        model(input_ids=torch.tensor([PROMPTS[0]]))
        recorder.clear()
        model(input_ids=torch.tensor([PROMPTS[1]]))
    trace = recorder.trace()
    assert trace.weights is None
    assert trace.token_ids.tolist() == PROMPTS[1]


def test_half_precision(model: nn.Module) -> None:
    half = FAMILY.build().to(torch.bfloat16)
    trace = record(half, padded("left"))
    assert trace.weights.dtype == np.float32
    np.testing.assert_allclose(trace.weights.sum(axis=2), 1, rtol=2e-2)
    assert trace.experts_of.shape == (12, 4, 3)


def test_the_past_of_a_forward() -> None:
    """Told by the cache, of either generation of transformers, or by a mask that is longer than the tokens."""
    keys = torch.zeros(1, 2, 5, 4)
    assert [cached_tokens(cache_of({"past": cache})) for cache in (None, (), ((keys, keys),) * 3)] == [0, 0, 5]
    ids = torch.ones(1, 1, dtype=torch.long)
    step = read_step({"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])})
    assert (step.past, step.phase, step.real.tolist()) == (5, 1, [[True]])
    step = read_step({"input_ids": ids, "past_key_values": ((keys, keys),)})
    assert (step.past, step.phase) == (5, 1)
    with pytest.raises(RecorderError, match="position_ids is 7 for one token without a past"):
        read_step({"input_ids": ids, "position_ids": torch.tensor([[7]])})
    assert read_step({"input_ids": ids, "position_ids": torch.tensor([[0]])}).past == 0
    with pytest.raises(RecorderError, match="neither input_ids nor inputs_embeds"):
        read_step({})
    with pytest.raises(RecorderError, match=r"input_ids are of shape \(1,\)"):
        read_step({"input_ids": ids[0]})
    with pytest.raises(RecorderError, match=r"attention_mask is a dict"):
        read_step({"input_ids": ids, "attention_mask": {}})


class OwnCache:
    """A cache that says its length, of no class that transformers has."""

    def __init__(self, tokens: int):
        self.tokens = tokens

    def get_seq_length(self) -> int:
        return self.tokens


def test_a_cache_is_found_whatever_its_name() -> None:
    ids = torch.ones(2, 1, dtype=torch.long)
    keys = torch.zeros(2, 1, 4, 8)
    for name in ("past_key_values", "cache", "cache_params", "a name of a later release"):
        for cache in (OwnCache(4), ((keys, keys),)):
            step = read_step({"input_ids": ids, "hidden": keys, name: cache})
            assert (step.past, step.phase, step.cache) == (4, 1, cache)
    both = OwnCache(4)
    assert read_step({"input_ids": ids, "cache": both, "past_key_values": both}).past == 4
    with pytest.raises(RecorderError, match=r"several key-value caches \(OwnCache, OwnCache\)"):
        cache_of({"cache": OwnCache(4), "past_key_values": OwnCache(4)})
    for name in ("past_key_values", "cache"):
        with pytest.raises(RecorderError, match=f"{name} is a dict, expected a cache"):
            cache_of({name: {}})


def test_an_unpadded_batch_is_generated_by_either_name_of_the_cache(model: nn.Module) -> None:
    """No mask tells the past here, so the cache alone does."""
    ids = torch.tensor([PROMPTS[0], PROMPTS[0][::-1]])
    recorder = Recorder(model)
    with recorder, torch.no_grad():
        for name in ("past_key_values", "cache"):
            if name not in inspect.signature(model.forward).parameters and name == "cache":
                continue
            cache = None
            for step in (ids, ids[:, :1], ids[:, 1:2]):
                output = model(input_ids=step, use_cache=True, **{name: cache})
                cache = returned_cache(output)
    trace = recorder.trace()
    assert set(np.diff(trace.offsets).tolist()) == {7}
    assert trace.phase.reshape(-1, 7).tolist() == [[0] * 5 + [1] * 2] * trace.sequences


def test_generate_without_a_mask_is_one_sequence_per_row(model: nn.Module) -> None:
    ids = torch.tensor([PROMPTS[0], PROMPTS[0][::-1]])
    recorder = Recorder(model)
    with recorder:
        model.generate(input_ids=ids, do_sample=False, min_new_tokens=6, max_new_tokens=6, suppress_tokens=[0])
    assert np.diff(recorder.trace().offsets).tolist() == [10, 10]
    assert recorder.trace().phase.tolist() == ([0] * 5 + [1] * 5) * 2


def test_a_release_that_was_not_tested_is_named(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, tested in (("5.23.1", True), ("5.24.0", True), ("5.2.4", False), ("5.240.0", False), ("6.0.0", False)):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, version=version: version)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Recorder(model)
        assert [f"not with {version}" in str(warning.message) for warning in caught] == [True] * (not tested)


def test_nothing_is_no_trace(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(RecorderError, match="nothing was recorded"):
        Recorder(model).trace()
    recorder = Recorder(model)
    with recorder, torch.no_grad():
        model(input_ids=torch.tensor([PROMPTS[0]]))
    for name in ("x.npz", "x"):
        with pytest.raises(RecorderError, match="would be a safetensors file; name it x.safetensors"):
            recorder.save(tmp_path / name)
    assert not list(tmp_path.iterdir())
