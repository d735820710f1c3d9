"""Records which experts a Mixture-of-Experts model uses, as trace files of format 1.0.

from moe_trace_recorder import Recorder

with Recorder(model, name="olmoe") as recorder:
    recorder.domain = "english"
    model.generate(**tokenizer(texts, padding=True, return_tensors="pt"))
recorder.save("trace.safetensors")
"""

from .errors import RecorderError
from .recorder import Recorder
from .routers import RouterLogits, RouterModules
from .select import Choice, by_weight, from_logits, from_weights
from .trace import Layer, Trace

__all__ = [
    "Choice",
    "Layer",
    "Recorder",
    "RecorderError",
    "RouterLogits",
    "RouterModules",
    "Trace",
    "by_weight",
    "from_logits",
    "from_weights",
]
