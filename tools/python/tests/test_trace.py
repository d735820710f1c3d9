"""Files of format 1.0."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from moe_trace_recorder import Layer, RecorderError, Trace

GOLDEN = Path(__file__).parents[3] / "crates/moe-trace/tests/golden/trace-1.0.safetensors"


def example(experts: int = 8) -> Trace:
    return Trace(
        layers=[Layer(1), Layer(3)],
        experts=experts,
        experts_of=np.array([[[0, 7], [3, -1]], [[2, 1], [4, 5]], [[6, 0], [-1, -1]]], np.int32),
        offsets=np.array([0, 2, 3]),
        phase=np.array([0, 1, 0]),
        weights=np.arange(12, dtype=np.float32).reshape(3, 2, 2),
        token_ids=np.array([9, 70000, 2]),
        predictions=np.array([70000, 2, 5]),
        text=[b"\xc3", b"\xbc", b""],
        domain=np.array([1, -1]),
        domains=["maths", "Prosa – ¶"],
        model="tiny",
    )


def header(path: Path) -> dict:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def test_columns_and_metadata(tmp_path: Path) -> None:
    path = example().write(tmp_path / "trace.safetensors")
    with safe_open(path, "np") as file:
        assert file.get_tensor("experts").dtype == np.uint8
        assert file.get_tensor("experts").tolist() == [[[0, 7], [3, 255]], [[2, 1], [4, 5]], [[6, 0], [255, 255]]]
        assert file.get_tensor("weights").dtype == np.float32
        assert file.get_tensor("weights")[0].tolist() == [[0, 1], [2, 0]]
        assert file.get_tensor("token_ids").dtype == np.uint32
        assert file.get_tensor("token_ids").tolist() == [9, 70000, 2]
        assert file.get_tensor("predictions").dtype == np.uint32
        assert file.get_tensor("predictions").tolist() == [70000, 2, 5]
        assert file.get_tensor("text").tobytes() == "ü".encode()
        assert file.get_tensor("text_offsets").tolist() == [0, 1, 2, 2]
        assert file.get_tensor("phase").dtype == np.uint8
        assert file.get_tensor("sequence_offsets").dtype == np.int64
        assert file.get_tensor("domain").dtype == np.int16
        assert file.get_tensor("domain").tolist() == [1, -1]
        assert list(file.metadata()) == ["moe_trace"]
        assert json.loads(file.metadata()["moe_trace"]) == {
            "version": "1.0",
            "layers": [{"model_layer": 1, "stack": "decoder"}, {"model_layer": 3, "stack": "decoder"}],
            "experts": 8,
            "top_k": 2,
            "domains": ["maths", "Prosa – ¶"],
            "model": "tiny",
        }
    assert os.listdir(tmp_path) == ["trace.safetensors"]


def test_ids_widen_where_255_would_be_an_expert(tmp_path: Path) -> None:
    for experts, dtype in ((255, np.uint8), (256, np.uint16)):
        path = example(experts).write(tmp_path / f"{experts}.safetensors")
        with safe_open(path, "np") as file:
            assert file.get_tensor("experts").dtype == dtype
            assert file.get_tensor("experts")[0, 1].tolist() == [3, np.iinfo(dtype).max]


def test_the_header_has_the_form_of_the_golden_file(tmp_path: Path) -> None:
    if not GOLDEN.exists():
        pytest.skip("outside of the repository")
    golden, ours = header(GOLDEN), header(example().write(tmp_path / "trace.safetensors"))
    want, got = (json.loads(entry["__metadata__"]["moe_trace"]) for entry in (golden, ours))
    assert list(got) == list(want)
    assert list(got["layers"][0]) == list(want["layers"][0])
    for name in set(golden) & set(ours) - {"__metadata__"}:
        assert ours[name]["dtype"] == golden[name]["dtype"], name
        assert len(ours[name]["shape"]) == len(golden[name]["shape"]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": 7}, r"expert 7 at token 0, layer 0, slot 1: expected one of 0\.\.7"),
        ({"experts": 0}, r"experts is 0, allowed are 1\.\.=65535"),
        ({"experts": 1 << 16}, r"experts is 65536, allowed are 1\.\.=65535"),
        ({"layers": [Layer(0)]}, r"experts is of shape \(3, 2, 2\), expected \(3, 1, 2\)"),
        ({"layers": []}, r"layers is 0, allowed are 1\.\.=65535"),
        ({"experts_of": np.zeros((3, 2), int)}, r"expected \[tokens, layers, top_k\]"),
        ({"experts_of": np.zeros((3, 2, 2), int)}, r"token 0 uses an expert twice in layer 0: \[0, 0\]"),
        ({"experts_of": np.full((3, 2, 2), -2)}, "expert -2"),
        ({"offsets": np.array([0, 2])}, "do not run from 0 to the number of tokens, 3"),
        ({"offsets": np.array([0, 4, 3])}, "descend"),
        ({"phase": np.array([0, 1, 2])}, "neither 0"),
        ({"phase": np.array([0, 1])}, r"phase is of shape \(2,\), expected \(3,\)"),
        ({"weights": np.full((3, 2, 2), np.nan)}, "a router weight is not finite"),
        ({"logits": np.zeros((3, 2, 2))}, r"expected \(3, 2, 8\)"),
        ({"logits": np.full((3, 2, 8), np.inf)}, "a router logit is neither finite nor -inf"),
        ({"logits": np.full((3, 2, 8), np.nan)}, "a router logit is neither finite nor -inf"),
        ({"token_ids": np.array([1, 2, -1])}, r"token_ids\[2\] is -1, allowed is 0\.\.2\^32"),
        ({"predictions": np.array([1, 1 << 32, 0])}, r"predictions\[1\] is 4294967296, allowed is 0\.\.2\^32"),
        ({"predictions": np.array([1, 2])}, r"predictions is of shape \(2,\), expected \(3,\)"),
        ({"text": [b"a", b"b"]}, "text has 2 entries, expected 3"),
        ({"domain": np.array([0, 2])}, "one of the 2 named"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_what_a_reader_would_refuse_is_not_written(tmp_path: Path, change: dict, message: str) -> None:
    trace = example()
    for name, value in change.items():
        setattr(trace, name, value)
    with pytest.raises(RecorderError, match=message):
        trace.write(tmp_path / "trace.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_weight_beside_an_empty_slot_does_not_count(tmp_path: Path) -> None:
    trace = example()
    trace.weights[0, 1, 1] = np.nan
    with safe_open(trace.write(tmp_path / "trace.safetensors"), "np") as file:
        assert file.get_tensor("weights")[0, 1].tolist() == [2, 0]


def test_masked_logits_are_kept(tmp_path: Path) -> None:
    trace = example()
    trace.logits = np.zeros((3, 2, 8), np.float32)
    trace.logits[1, 0, 3] = -np.inf
    with safe_open(trace.write(tmp_path / "trace.safetensors"), "np") as file:
        assert file.get_tensor("logits").dtype == np.float32
        assert file.get_tensor("logits")[1, 0].tolist() == [0, 0, 0, -np.inf, 0, 0, 0, 0]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = example().write(tmp_path / "trace.safetensors")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    other = example()
    other.model = "other"
    with pytest.raises(OSError, match="No space"):
        other.write(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["trace.safetensors"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    """A process replaces a file over and over; whenever it is killed, the file is one of the two whole ones."""
    script = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parents[1] / "src"), str(Path(__file__).parent)]!r}
from test_trace import example
import numpy as np
traces = []
for model in ("one", "two"):
    trace = example(); trace.model = model
    trace.experts_of = np.tile(trace.experts_of, (20000, 1, 1)); n = len(trace.experts_of)
    trace.offsets = np.array([0, n]); trace.phase = np.zeros(n); trace.domain = None
    trace.weights = None; trace.token_ids = None; trace.predictions = None; trace.text = None
    traces.append(trace)
print("ready", flush=True)
while True:
    for trace in traces:
        trace.write({str(tmp_path / "trace.safetensors")!r})
"""
    for delay in (0.02, 0.05, 0.11):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        while not (tmp_path / "trace.safetensors").exists():
            pass
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
        process.stdout.close()
        with safe_open(tmp_path / "trace.safetensors", "np") as file:
            assert json.loads(file.metadata()["moe_trace"])["model"] in ("one", "two")
            assert file.get_tensor("experts").shape == (60000, 2, 2)


def test_lists_and_tensors_become_arrays(tmp_path: Path) -> None:
    plain = example()
    lists = Trace(
        layers=plain.layers,
        experts=8,
        experts_of=plain.experts_of.tolist(),
        offsets=[0, 2, 3],
        phase=[0, 1, 0],
        weights=torch.tensor(plain.weights, dtype=torch.bfloat16, requires_grad=True),
        token_ids=torch.tensor(plain.token_ids),
        predictions=plain.predictions.tolist(),
        text=plain.text,
        domain=torch.tensor([1, -1]),
        domains=plain.domains,
        model="tiny",
    )
    ours = [trace.write(tmp_path / f"{name}.safetensors").read_bytes() for name, trace in (("a", plain), ("b", lists))]
    assert ours[0] == ours[1]
    assert repr(lists) == "Trace(2 sequences, 3 tokens, 2 layers of 8 experts, top-2)"


def test_columns_of_the_wrong_kind_are_refused() -> None:
    layers = [Layer(0)]
    with pytest.raises(RecorderError, match="experts_of is of type float64, expected integers"):
        Trace(layers, 4, [[[0.0, 1.0]]], [0, 1], [0])
    with pytest.raises(RecorderError, match="weights is of type int64, expected floating-point numbers"):
        Trace(layers, 4, [[[0, 1]]], [0, 1], [0], weights=[[[1, 2]]])
    with pytest.raises(RecorderError, match="offsets is no array of numbers"):
        Trace(layers, 4, [[[0, 1]]], [[0], [1, 2]], [0])
    with pytest.raises(RecorderError, match="expert 255 at token 0, layer 0, slot 1: expected one of 0..4"):
        Trace(layers, 4, np.array([[[0, 255]]], np.uint8), [0, 1], [0]).check()
    assert Trace(layers, 4, np.zeros((0, 1, 2)), [0], []).tokens == 0
