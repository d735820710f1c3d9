"""Writes an OLMoE checkpoint of random weights in the Hugging Face layout, to compare speeds at real sizes.

    python random_olmoe.py TOKENIZER.json OUT_FOLDER [--layers 8] [--seed 0]

The shape is that of OLMoE-1B-7B (hidden 2048, experts 1024, 64 of them, top-8) but for the vocabulary, which is the
tokenizer's, and the layers. Weights are f16, one file a layer. Needs numpy and safetensors.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, HEADS = 2048, 1024, 64, 8, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path, help="byte-level BPE of the tokenizers library")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True)
    shutil.copy(arguments.tokenizer, arguments.out / "tokenizer.json")
    vocabulary = len(json.loads(arguments.tokenizer.read_text())["model"]["vocab"])
    config = {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "attention_bias": False,
        "clip_qkv": None,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 4096,
        "norm_topk_prob": False,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "num_hidden_layers": arguments.layers,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": vocabulary,
    }
    (arguments.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generator = np.random.Generator(np.random.SFC64(arguments.seed))

    def matrix(rows: int, columns: int) -> np.ndarray:
        scale = np.float32(columns**-0.5)
        return (generator.standard_normal((rows, columns), np.float32) * scale).astype(np.float16)

    files = {}

    def save(number: int, tensors: dict[str, np.ndarray]) -> None:
        name = f"model-{number + 1:05}-of-{arguments.layers + 1:05}.safetensors"
        save_file(tensors, arguments.out / name, {"format": "pt"})
        files.update(dict.fromkeys(tensors, name))

    ones = np.ones(HIDDEN, np.float16)
    for layer in range(arguments.layers):
        prefix = f"model.layers.{layer}"
        tensors = {f"{prefix}.self_attn.{name}_proj.weight": matrix(HIDDEN, HIDDEN) for name in "qkvo"}
        norms = ["self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"]
        tensors.update({f"{prefix}.{name}.weight": ones for name in norms})
        tensors[f"{prefix}.mlp.gate.weight"] = matrix(EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            name = f"{prefix}.mlp.experts.{expert}"
            tensors[f"{name}.gate_proj.weight"] = matrix(INTERMEDIATE, HIDDEN)
            tensors[f"{name}.up_proj.weight"] = matrix(INTERMEDIATE, HIDDEN)
            tensors[f"{name}.down_proj.weight"] = matrix(HIDDEN, INTERMEDIATE)
        save(layer, tensors)
    save(arguments.layers, {"model.embed_tokens.weight": matrix(vocabulary, HIDDEN), "model.norm.weight": ones})
    (arguments.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


if __name__ == "__main__":
    main()
