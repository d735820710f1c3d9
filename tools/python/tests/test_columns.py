"""Predictions and the text of tokens."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from safetensors import safe_open
from test_sequences import PROMPTS, padded
from tokenizers import Tokenizer, decoders, models
from torch import nn

from moe_trace_recorder import Recorder, RecorderError, RouterLogits, Trace, from_logits
from moe_trace_recorder.text import TokenText

BYTE_LEVEL = Path(__file__).parents[3] / "models/default/tokenizer.json"


def build(name: str) -> nn.Module:
    return next(family for family in FAMILIES if family.name == name).build()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build("mixtral")


def predicted(model: nn.Module, trace: Trace, index: int) -> tuple[list[int], list[int]]:
    """Recorded predictions of a sequence, and what the model says to its tokens without a cache or padding."""
    tokens = slice(trace.offsets[index], trace.offsets[index + 1])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(trace.token_ids[tokens])[None]).logits[0]
    return trace.predictions[tokens].tolist(), logits.argmax(-1).tolist()


def test_predictions_of_a_padded_batch_that_generates(model: nn.Module) -> None:
    batch = {name: tensor for name, tensor in padded("left").items() if name != "position_ids"}
    recorder = Recorder(model, predictions=True)
    with recorder:
        out = model.generate(**batch, do_sample=False, min_new_tokens=5, max_new_tokens=5)
    plain = model.generate(**batch, do_sample=False, min_new_tokens=5, max_new_tokens=5)
    assert out.tolist() == plain.tolist()
    trace = recorder.trace()
    for index in range(len(PROMPTS)):
        found, expected = predicted(model, trace, index)
        assert found == expected


def test_a_caller_gets_the_logits_that_it_asked_for(model: nn.Module) -> None:
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        recorder = Recorder(model, predictions=True)
        with recorder:
            last = model(input_ids=ids, logits_to_keep=2).logits
            some = model(input_ids=ids, logits_to_keep=torch.tensor([0, 3])).logits
            in_tuple = model(input_ids=ids, logits_to_keep=1, return_dict=False)[0]
    torch.testing.assert_close(last, whole[:, -2:])
    torch.testing.assert_close(some, whole[:, [0, 3]])
    torch.testing.assert_close(in_tuple, whole[:, -1:])
    assert recorder.trace().predictions.tolist() == whole[0].argmax(-1).tolist() * 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_encoder_does_not_predict() -> None:
    model = build("switch_transformers")
    recorder = Recorder(model, predictions=True)
    ids, targets = torch.tensor([PROMPTS[0]]), torch.tensor([PROMPTS[1]])
    with recorder, torch.no_grad():
        logits = model(input_ids=ids, decoder_input_ids=targets).logits
    traces = recorder.traces()
    assert traces["encoder"].predictions is None
    assert traces["decoder"].predictions.tolist() == logits[0].argmax(-1).tolist()


def test_predictions_beside_returned_router_logits(model: nn.Module) -> None:
    recorder = Recorder(model, routers=RouterLogits(from_logits(3), experts=8), predictions=True)
    with recorder, torch.no_grad():
        logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits
    assert recorder.trace().predictions.tolist() == logits[0].argmax(-1).tolist()


def test_a_model_without_a_head_has_no_predictions(model: nn.Module) -> None:
    recorder = Recorder(model.model, predictions=True)
    with recorder, torch.no_grad(), pytest.raises(RecorderError, match=r"logits are none, expected \(1, 5\) tokens"):
        model.model(input_ids=torch.tensor([PROMPTS[0]]))


def test_text_of_a_byte_level_vocabulary(model: nn.Module) -> None:
    """Every byte comes back, of a character that is cut in two as well."""
    if not BYTE_LEVEL.exists():
        pytest.skip("outside of the repository")
    tokenizer = Tokenizer.from_file(str(BYTE_LEVEL))
    text = TokenText(tokenizer)
    written = "Grüße, 世界!\n\tfn main() {}  🦀"
    tokens = [text(token_id) for token_id in tokenizer.encode(written).ids]
    assert b"".join(tokens) == written.encode()
    assert len(tokens) > 5
    with pytest.raises(RecorderError, match="token id 99999 is not in the tokenizer's vocabulary"):
        text(99999)


def test_text_of_a_vocabulary_with_byte_fallback() -> None:
    tokenizer = Tokenizer(models.BPE({"▁ab": 0, "c": 1, "<0xC3>": 2, "<0xBC>": 3}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>"])
    text = TokenText(tokenizer)
    assert [text(token_id) for token_id in range(5)] == [b" ab", b"c", b"\xc3", b"\xbc", b"<s>"]


def test_text_of_any_other_tokenizer() -> None:
    tokenizer = Tokenizer(models.WordLevel({"one": 0, "two": 1}, unk_token="one"))
    assert [TokenText(tokenizer)(token_id) for token_id in (1, 0)] == [b"two", b"one"]
    with pytest.raises(RecorderError, match="the tokenizer is a int, which cannot decode"):
        TokenText(7)


class Letters:
    """A tokenizer of no library."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return "ü" * token_ids[0]


def test_the_file_has_the_columns(model: nn.Module, tmp_path: Path) -> None:
    recorder = Recorder(model, predictions=True, tokenizer=Letters())
    with recorder, torch.no_grad():
        model(**padded("right"))
    (path,) = recorder.save(tmp_path / "trace.safetensors")
    with safe_open(path, "np") as file:
        ids, offsets = file.get_tensor("token_ids"), file.get_tensor("text_offsets")
        assert file.get_tensor("predictions").dtype == np.uint32
        assert file.get_tensor("predictions").tolist() == recorder.trace().predictions.tolist()
        assert (file.get_tensor("text").dtype, offsets.dtype) == (np.uint8, np.int64)
        assert np.diff(offsets).tolist() == [2 * token_id for token_id in ids.tolist()]
        assert file.get_tensor("text").tobytes() == ("ü" * int(ids.sum())).encode()


def test_the_rust_reader_takes_the_columns(model: nn.Module, tmp_path: Path, run_validator: str) -> None:
    recorder = Recorder(model, logits=True, predictions=True, tokenizer=Letters())
    with recorder, torch.no_grad():
        model(**padded("right"))
    (path,) = recorder.save(tmp_path / "trace.safetensors")
    result = subprocess.run([run_validator, str(path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_embeddings_have_no_text(model: nn.Module) -> None:
    recorder = Recorder(model, tokenizer=Letters())
    with recorder, torch.no_grad():
        model(inputs_embeds=model.get_input_embeddings()(torch.tensor([PROMPTS[0]])))
    assert recorder.trace().text is None
