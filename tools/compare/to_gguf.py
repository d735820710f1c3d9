"""Writes an OLMoE checkpoint in the Hugging Face layout as a GGUF file that llama.cpp runs.

The file has no tokenizer: it is for measuring speed. llama.cpp does not scale the weights of a token's experts to sum to
1 for OLMoE, so the text of a checkpoint with `norm_topk_prob` differs; the work does not.

    python to_gguf.py MODEL_FOLDER OUT.gguf [--type f32|f16|q8_0]
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with config.json and model*.safetensors")
    parser.add_argument("out", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=TYPES, default="f32", help="type of the expert weights")
    arguments = parser.parse_args()

    config = json.loads((arguments.model / "config.json").read_text())
    tensors = {}
    for file in sorted(arguments.model.glob("model*.safetensors")):
        tensors.update(load_file(file))
    writer = gguf.GGUFWriter(arguments.out, "olmoe")
    writer.add_name(arguments.model.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")

    def dense(name: str) -> np.ndarray:
        return tensors[name].astype(np.float32)

    def add(name: str, values: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", dense("model.embed_tokens.weight"), TYPES["f32"])
    add("output_norm.weight", dense("model.norm.weight"), TYPES["f32"])
    if "lm_head.weight" in tensors:
        add("output.weight", dense("lm_head.weight"), TYPES["f32"])
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, short in NAMES.items():
            add(f"blk.{layer}.{short}.weight", dense(f"{prefix}.{name}.weight"), TYPES["f32"])
        for projection in ["gate", "up", "down"]:
            names = [f"{prefix}.mlp.experts.{e}.{projection}_proj.weight" for e in range(config["num_experts"])]
            stacked = np.stack([dense(name) for name in names])
            add(f"blk.{layer}.ffn_{projection}_exps.weight", stacked, TYPES[arguments.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
