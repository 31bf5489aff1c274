"""LongestMatchEncoder: the longest token that fits, again and again, over bytes (RWKV's world vocabulary).

Source of the rule: `llm_tokenizer_rwkv_session`, src/llama-vocab.cpp of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence


class LongestMatchEncoder:
    """Encodes text between special tokens."""

    def __init__(self, tokens: Sequence[bytes], unknown_id: int) -> None:
        """`tokens` are the bytes of each id; `unknown_id` stands for a byte at which no token begins."""
        self._ids = {token: index for index, token in enumerate(tokens) if token}
        self._unknown_id = unknown_id
        lengths: dict[bytes, set[int]] = {}
        for token in self._ids:
            # Two bytes narrow the lengths down; a token of one byte is tried after all others.
            lengths.setdefault(token[:2], set()).add(len(token))
        self._lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        data = text.encode()
        ids, position = [], 0
        while position < len(data):
            length = self._longest(data, position)
            ids.append(self._ids[data[position : position + length]] if length else self._unknown_id)
            position += length or 1
        return ids

    def _longest(self, data: bytes, position: int) -> int:
        for length in self._lengths.get(data[position : position + 2], ()):
            if data[position : position + length] in self._ids:
                return length
        return int(data[position : position + 1] in self._ids)
