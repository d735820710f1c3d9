"""Measures how fast transformers prefills and decodes on the CPU with a checkpoint in the Hugging Face layout.

    python transformers_speed.py MODEL_FOLDER [--prompt 128] [--new 64] [--threads 2] [--rounds 5] [--dtype float32]

Prints one JSON object; of every step the best of the rounds counts, as in `moescope run`.
"""

import argparse
import json
import time

import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder with config.json and model*.safetensors")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to decode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
    model.eval()
    count = arguments.prompt + arguments.new
    tokens = torch.tensor([[(7 * i + 1) % (model.config.vocab_size - 1) + 1 for i in range(count)]])
    prefill, decode = [], []
    with torch.inference_mode():
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            output = model(tokens[:, : arguments.prompt], use_cache=True)
            prefill.append(time.perf_counter() - started)
            steps = []
            for position in range(arguments.prompt, count):
                started = time.perf_counter()
                token = tokens[:, position : position + 1]
                output = model(token, past_key_values=output.past_key_values, use_cache=True)
                steps.append(time.perf_counter() - started)
            decode.append(steps)
    best = [min(steps) for steps in zip(*decode)]
    print(
        json.dumps(
            {
                "transformers": transformers.__version__,
                "torch": torch.__version__,
                "prefill_tokens_per_second": arguments.prompt / min(prefill),
                "decode_tokens_per_second": len(best) / sum(best),
            }
        )
    )


if __name__ == "__main__":
    main()
