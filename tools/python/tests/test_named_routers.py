"""Routers that the user names, on models whose code is not part of transformers: the shapes of remote code."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn

from moe_trace_recorder import Recorder, RecorderError, RouterLogits, RouterModules, from_logits, from_weights

EXPERTS, HIDDEN = 6, 16


class LinearGate(nn.Linear):
    """The gate only rates; the block chooses (XVERSE, MiniCPM, Yuan)."""

    def __init__(self) -> None:
        super().__init__(HIDDEN, EXPERTS, bias=False)


class TupleGate(LinearGate):
    """Indices, weights, auxiliary loss (DeepSeekMoE)."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, ids = super().forward(hidden.flatten(0, 1)).softmax(-1).topk(2, dim=-1)
        return ids, weights, None


class DictGate(LinearGate):
    """A dictionary (LLaMA-MoE)."""

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        scores, ids = super().forward(hidden.flatten(0, 1)).topk(2, dim=-1)
        return {"topK_indices": ids, "topK_scores": scores.softmax(-1)}


class DenseGate(LinearGate):
    """Combining weights of all experts and their places, zero for those not chosen (OpenMoE)."""

    def forward(self, hidden: Tensor) -> Tensor:
        weights, ids = super().forward(hidden.flatten(0, 1)).softmax(-1).topk(2, dim=-1)
        combine = torch.zeros(len(ids), EXPERTS).scatter(1, ids, weights)
        return combine.unsqueeze(-1) * torch.tensor([0.0, 1.0])  # place 1 of 2


class Block(nn.Module):
    def __init__(self, gate: nn.Module | None) -> None:
        super().__init__()
        self.gate = gate
        self.up = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.gate is not None:
            self.gate(hidden)
        return hidden + self.up(hidden)


class Model(nn.Module):
    """Layers 0 and 2 are dense."""

    def __init__(self, gate: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, HIDDEN)
        self.layers = nn.ModuleList(Block(gate() if layer in (1, 3) else None) for layer in range(4))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


SELECT = {
    LinearGate: from_logits(2),
    TupleGate: lambda output: output[:2],
    DictGate: lambda output: (output["topK_indices"], output["topK_scores"]),
    DenseGate: lambda output: from_weights(2)(output.sum(-1)),
}


@pytest.mark.parametrize("gate", SELECT, ids=lambda gate: gate.__name__)
def test_named_modules(gate: type[nn.Module]) -> None:
    model = Model(gate)
    recorder = Recorder(model, routers=RouterModules(r"layers\.\d+\.gate$", SELECT[gate], EXPERTS))
    assert recorder.routers == ["layers.1.gate", "layers.3.gate"]
    ids, mask = torch.tensor([[7, 11, 13], [0, 3, 5]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    with recorder, torch.no_grad():
        model(ids, attention_mask=mask)
    trace = recorder.trace()
    assert [layer.model_layer for layer in trace.layers] == [1, 3]
    assert trace.token_ids.tolist() == [7, 11, 13, 3, 5]
    hidden = model.embed(torch.tensor(trace.token_ids))
    for number, layer in enumerate(model.layers):
        if number in (1, 3):
            logits = nn.functional.linear(hidden, layer.gate.weight)
            weights, want = logits.softmax(-1).topk(2)
            got = trace.weights[:, number // 2]
            if gate is DictGate:
                weights = logits.gather(-1, want).softmax(-1)
            assert trace.experts_of[:, number // 2].tolist() == want.tolist()
            torch.testing.assert_close(torch.tensor(got), weights)
        hidden = hidden + layer.up(hidden)


def test_the_pattern_may_name_the_layer() -> None:
    routers = RouterModules(r"(?P<layer>\d+)\.gate$", from_logits(2), EXPERTS)
    recorder = Recorder(Model(LinearGate), routers=routers)
    assert recorder.routers == ["layers.1.gate", "layers.3.gate"]


def test_wrong_names_and_functions_are_refused() -> None:
    model, ids = Model(LinearGate), torch.tensor([[1, 2, 3]])
    with pytest.raises(RecorderError, match="no module's name matches 'router'"):
        Recorder(model, routers=RouterModules("router", from_logits(2), EXPERTS))
    with pytest.raises(RecorderError, match="the logits of router layers.1.gate are is not known"):
        Recorder(model, routers=RouterModules("gate", from_logits(2), EXPERTS), logits=True)
    with (
        pytest.raises(RecorderError, match="chose experts of type torch.float32"),
        Recorder(model, routers=RouterModules("gate", lambda _: (torch.ones(3, 2), None), EXPERTS)),
    ):
        model(ids)
    with pytest.raises(ValueError, match="score is 'tanh'"):
        from_logits(2, score="tanh")
    with (
        pytest.raises(RecorderError, match=r"layers.1.gate chose experts of shape \(1, 3, 6\), expected \[3, top_k\]"),
        Recorder(model, routers=RouterModules("gate", lambda output: (output.int(), output), EXPERTS)),
    ):
        model(ids)
    with (
        pytest.raises(RecorderError, match=r"weights of shape \(3, 1\) for experts of shape \(3, 2\)"),
        Recorder(model, routers=RouterModules("gate", lambda _: (torch.ones(3, 2).int(), torch.ones(3, 1)), EXPERTS)),
    ):
        model(ids)
    recorder = Recorder(model, routers=RouterModules("gate", from_logits(2), 3))
    with recorder, torch.no_grad():
        model(ids)
    with pytest.raises(RecorderError, match=r"expected one of 0\.\.3"):
        recorder.save("never.safetensors")
    model.layers[3].gate = model.layers[1].gate
    with (
        pytest.raises(RecorderError, match="ran twice"),
        Recorder(model, routers=RouterModules("gate", from_logits(2), EXPERTS)),
    ):
        model(ids)
    model = Model(LinearGate)
    model.layers[3].forward = lambda hidden: hidden
    routers = RouterModules("gate", from_logits(2), EXPERTS)
    with pytest.raises(RecorderError, match="layers.3.gate did not run"), Recorder(model, routers=routers):
        model(ids)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "gpt_oss"])
def test_returned_logits_agree_with_hooks(name: str) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    model = family.build()
    ids, mask = torch.randint(3, 99, (2, 5)), torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    options = {"score": "softmax", "renormalize": name == "mixtral"}
    select = from_logits(3, **({"score": "top_k_softmax"} if name == "gpt_oss" else options))
    traces = []
    for routers in (None, RouterLogits(select, family.experts)):
        recorder = Recorder(model, routers=routers, logits=True)
        with recorder:
            model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=3, suppress_tokens=[0, 2]
            )
        traces.append(recorder.trace())
    hooked, returned = traces
    assert hooked.layers == returned.layers
    assert hooked.phase.tolist() == returned.phase.tolist()
    assert hooked.experts_of.tolist() == returned.experts_of.tolist()
    torch.testing.assert_close(torch.tensor(hooked.weights), torch.tensor(returned.weights))
    torch.testing.assert_close(torch.tensor(hooked.logits), torch.tensor(returned.logits))


def test_returned_logits_of_some_layers() -> None:
    """JetMoE's tuple holds its attention routers too."""
    model = next(family for family in FAMILIES if family.name == "jetmoe").build()
    ids = torch.randint(3, 99, (1, 5))
    with torch.no_grad():
        entries = len(model(input_ids=ids, output_router_logits=True).router_logits)
    per_layer = entries // 4
    layers = [entry // per_layer if entry % per_layer == per_layer - 1 else None for entry in range(entries)]
    hooked = Recorder(model)
    returned = Recorder(model, routers=RouterLogits(from_logits(3, score="top_k_softmax"), 8, layers))
    with hooked, returned, torch.no_grad():
        model(input_ids=ids)
    assert returned.trace().layers == hooked.traces()["decoder"].layers
    assert returned.trace().experts_of.tolist() == hooked.traces()["decoder"].experts_of.tolist()
    wrong = Recorder(model, routers=RouterLogits(from_logits(3), 8, [0, 1]))
    with pytest.raises(RecorderError, match=f"router_logits of {entries} layers, 2 are named"), wrong:
        model(input_ids=ids)
