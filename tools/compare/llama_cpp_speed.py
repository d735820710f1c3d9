"""Measures how fast llama.cpp prefills and decodes with a GGUF file that is memory-mapped.

    python llama_cpp_speed.py MODEL.gguf [--prompt 128] [--new 64] [--threads 2] [--rounds 5]

Prints one JSON object; of every step the best of the rounds counts, as in `offload speed`.
"""

import argparse
import json
import time

from llama_cpp import Llama, __version__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to decode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    model = Llama(
        arguments.model,
        n_ctx=arguments.prompt + arguments.new,
        n_batch=arguments.prompt,
        n_threads=arguments.threads,
        n_threads_batch=arguments.threads,
        use_mmap=True,
        verbose=False,
    )
    tokens = [(7 * i + 1) % (model.n_vocab() - 1) + 1 for i in range(arguments.prompt + arguments.new)]
    prefill, decode = [], []
    for _ in range(arguments.rounds):
        model.reset()
        started = time.perf_counter()
        model.eval(tokens[: arguments.prompt])
        prefill.append(time.perf_counter() - started)
        steps = []
        for token in tokens[arguments.prompt :]:
            started = time.perf_counter()
            model.eval([token])
            steps.append(time.perf_counter() - started)
        decode.append(steps)
    best = [min(steps) for steps in zip(*decode)]
    print(
        json.dumps(
            {
                "llama_cpp_python": __version__,
                "prefill_tokens_per_second": arguments.prompt / min(prefill),
                "decode_tokens_per_second": len(best) / sum(best),
            }
        )
    )


if __name__ == "__main__":
    main()
