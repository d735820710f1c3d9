"""Measures how fast llama.cpp prefills and decodes with a GGUF file that is memory-mapped.

    python llama_cpp_speed.py MODEL.gguf PROMPTS.json [--new 64] [--threads 2] [--rounds 5] [--repack]

Each prompt is read and continued greedily, as `moescope run` does it, and the end of text does not end it. The times are
those that llama.cpp counts itself; of every prompt the best of the rounds counts. Decoding begins with the first new token,
which prefilling gave, so one token less is decoded than llama.cpp says. Prints one JSON object. Needs xllamacpp.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("prompts", type=Path, help='JSON list of objects with a "text"')
    parser.add_argument("--new", type=int, default=64, help="tokens to decode")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--repack", action="store_true", help="let llama.cpp copy weights into layouts of its own, which are not mapped"
    )
    arguments = parser.parse_args()

    prompts = [prompt["text"] for prompt in json.loads(arguments.prompts.read_text())]
    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.no_extra_bufts = not arguments.repack
    # A token has at least one byte.
    params.n_ctx = max(len(prompt.encode()) for prompt in prompts) + arguments.new
    params.n_parallel, params.warmup, params.cache_ram_mib, params.verbosity = 1, False, 0, 0
    server = xllamacpp.Server(params)

    best = {}
    for _ in range(arguments.rounds):
        for number, prompt in enumerate(prompts):
            request = {
                "prompt": prompt,
                "n_predict": arguments.new,
                "ignore_eos": True,
                "temperature": 0,
                "cache_prompt": False,
            }
            answer = server.handle_completions(request)
            if "timings" not in answer:
                raise SystemExit(f"llama.cpp did not answer: {answer}")
            times = answer["timings"]
            if times["predicted_n"] != arguments.new:
                raise SystemExit(f"prompt {number}: {times['predicted_n']} new tokens")
            for phase, tokens in [("prompt", times["prompt_n"]), ("predicted", times["predicted_n"] - 1)]:
                key = (number, phase)
                best[key] = min(best.get(key, (float("inf"), 0)), (times[f"{phase}_ms"], tokens))

    def speed(phase: str) -> float:
        of_phase = [value for (_, of), value in best.items() if of == phase]
        return 1000 * sum(tokens for _, tokens in of_phase) / sum(ms for ms, _ in of_phase)

    print(
        json.dumps(
            {
                "xllamacpp": version("xllamacpp"),
                "system": xllamacpp.get_system_info(),
                "prefill_tokens_per_second": speed("prompt"),
                "decode_tokens_per_second": speed("predicted"),
            }
        )
    )


if __name__ == "__main__":
    main()
