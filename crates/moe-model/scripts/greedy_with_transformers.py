#!/usr/bin/env python3
"""Continues a prompt greedily with transformers, to compare with what this repository's code generates.

    python greedy_with_transformers.py models/default "The file is opened for reading." 40

Needs torch, transformers and tokenizers.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def main():
    folder, prompt, new_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        text = model.generate(ids, do_sample=False, max_new_tokens=new_tokens, pad_token_id=0)[0]
    print(tokenizer.decode(text))


if __name__ == "__main__":
    main()
