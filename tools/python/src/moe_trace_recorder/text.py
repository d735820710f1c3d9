"""The text of a token as bytes: a token may be a part of a character."""

from __future__ import annotations

import json
import re
from typing import Any

from .errors import RecorderError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenText:
    """Text of tokens, from a tokenizer of transformers or of tokenizers.

    Byte-level vocabularies and those with byte fallback give the very bytes of a token; of others, the text is what the
    tokenizer decodes the token to when it stands alone.
    """

    def __init__(self, tokenizer: Any):
        if not callable(getattr(tokenizer, "decode", None)):
            raise RecorderError(f"the tokenizer is a {type(tokenizer).__name__}, which cannot decode")
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._known: dict[int, bytes] = {}
        described = json.loads(self._backend.to_str()) if hasattr(self._backend, "to_str") else {}
        self._added = {token["id"] for token in described.get("added_tokens") or []}
        decoder = described.get("decoder") or {}
        steps = decoder.get("decoders", [decoder])
        kinds = {step.get("type") for step in steps}
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._replaced = [
            (step["pattern"]["String"], step["content"])
            for step in steps
            if step.get("type") == "Replace" and "String" in step["pattern"]
        ]

    def __call__(self, token_id: int) -> bytes:
        if token_id not in self._known:
            exact = self._byte_level or self._byte_fallback
            self._known[token_id] = self._exact(token_id) if exact else self._alone(token_id)
        return self._known[token_id]

    def _exact(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id)
        if token is None:
            raise RecorderError(f"token id {token_id} is not in the tokenizer's vocabulary")
        if token_id in self._added:
            return token.encode()
        if self._byte_level:
            return b"".join(_BYTES.get(character, character.encode()) for character in token)
        if byte := _BYTE.fullmatch(token):
            return bytes([int(byte[1], 16)])
        for pattern, content in self._replaced:
            token = token.replace(pattern, content)
        return token.encode()

    def _alone(self, token_id: int) -> bytes:
        try:
            return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()
        except (IndexError, KeyError, OverflowError, TypeError) as error:
            raise RecorderError(f"the tokenizer cannot decode token id {token_id}: {error}") from error


def _byte_characters() -> dict[str, bytes]:
    """What the characters of a byte-level vocabulary stand for: printable bytes for themselves, the others moved up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(256 + index): bytes([byte]) for index, byte in enumerate(moved)}


_BYTES = _byte_characters()
