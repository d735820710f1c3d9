"""Writes an OLMoE checkpoint in the Hugging Face layout as a GGUF file that llama.cpp runs.

    python to_gguf.py MODEL_FOLDER OUT.gguf [--type f32|f16|q8_0|q4_0]

What is no expert stays f32, and the whole file is in memory until it is written. llama.cpp never scales the weights of a token's experts to sum to 1 for OLMoE, so a checkpoint
with `norm_topk_prob` gives other text there; the work is the same. Needs gguf, ml_dtypes, numpy and safetensors.
"""

import argparse
import json
from pathlib import Path

import gguf
import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
import numpy as np
from safetensors import safe_open

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
}


def add_tokenizer(writer: gguf.GGUFWriter, path: Path, vocabulary: int) -> None:
    """Writes a byte-level BPE; ids that no token has are filled."""
    tokenizer = json.loads(path.read_text())
    tokens = {token: (id, gguf.TokenType.NORMAL) for token, id in tokenizer["model"]["vocab"].items()}
    tokens |= {token["content"]: (token["id"], gguf.TokenType.CONTROL) for token in tokenizer["added_tokens"]}
    by_id = {id: (token, kind) for token, (id, kind) in tokens.items()}
    table = [by_id.get(id, (f"[UNUSED{id}]", gguf.TokenType.UNUSED)) for id in range(vocabulary)]
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in table])
    writer.add_token_types([kind for _, kind in table])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with config.json, tokenizer.json and model*.safetensors")
    parser.add_argument("out", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=TYPES, default="f32", help="type of the expert weights")
    arguments = parser.parse_args()

    config = json.loads((arguments.model / "config.json").read_text())
    files = {}
    for path in sorted(arguments.model.glob("model*.safetensors")):
        file = safe_open(path, "numpy")
        files.update({name: file for name in file.keys()})
    writer = gguf.GGUFWriter(arguments.out, "olmoe", use_temp_file=False)
    writer.add_name(arguments.model.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, arguments.model / "tokenizer.json", config["vocab_size"])

    def read(name: str) -> np.ndarray:
        return files[name].get_tensor(name).astype(np.float32)

    def add(name: str, values: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", read("model.embed_tokens.weight"), TYPES["f32"])
    add("output_norm.weight", read("model.norm.weight"), TYPES["f32"])
    # llama.cpp wants one for OLMoE, tied or not.
    head = "lm_head.weight" if "lm_head.weight" in files else "model.embed_tokens.weight"
    add("output.weight", read(head), TYPES["f32"])
    kind = TYPES[arguments.type]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, short in NAMES.items():
            add(f"blk.{layer}.{short}.weight", read(f"{prefix}.{name}.weight"), TYPES["f32"])
        for projection in ["gate", "up", "down"]:
            names = [f"{prefix}.mlp.experts.{e}.{projection}_proj.weight" for e in range(config["num_experts"])]
            experts = np.stack([gguf.quants.quantize(read(name), kind) for name in names])
            writer.add_tensor(f"blk.{layer}.ffn_{projection}_exps.weight", experts, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


if __name__ == "__main__":
    main()
