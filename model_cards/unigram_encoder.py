"""UnigramEncoder and LeastCostEncoder: the cheapest way to cut a text into tokens that have scores.

Own the two searches of llama.cpp (`llm_tokenizer_ugm_session` for T5's unigram vocabularies, `llm_tokenizer_plamo2`;
src/llama-vocab.cpp) and the first one's normalization. Know nothing of special tokens.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from model_cards.charsmap import Charsmap
from model_cards.gguf_vocab import BYTE, NORMAL, UNUSED, USER_DEFINED
from model_cards.token_pieces import SPACE

_UNKNOWN_PENALTY = 10.0


class UnigramEncoder:
    """Encodes text between special tokens: highest sum of scores."""

    def __init__(
        self,
        tokens: Sequence[str],
        types: Sequence[int],
        scores: Sequence[float],
        *,
        unknown_id: int,
        charsmap: bytes,
        add_space_prefix: bool,
        merge_spaces: bool,
        byte_ids: Sequence[int] | None = None,
    ) -> None:
        """`charsmap` is SentencePiece's precompiled normalization, empty for none.

        `byte_ids`: 256 ids that spell an unknown character; None for one unknown token a run of them.
        """
        usable = [index for index, kind in enumerate(types) if kind in (NORMAL, USER_DEFINED, UNUSED)]
        self._ids = {tokens[index]: index for index in usable}
        self._scores = [0.0 if types[index] == USER_DEFINED else scores[index] for index in range(len(tokens))]
        self._beginnings = {text[:length] for text in self._ids for length in range(1, len(text) + 1)}
        normal = [scores[index] for index in usable if types[index] == NORMAL]
        # The penalty is taken off in single precision there.
        self._unknown_score = _single(min(normal, default=0.0) - _UNKNOWN_PENALTY)
        self._unknown_id, self._byte_ids = unknown_id, byte_ids
        whole = [tokens[index] for index in usable if types[index] == USER_DEFINED]
        self._charsmap = Charsmap(charsmap, whole)
        self._add_space_prefix, self._merge_spaces = add_space_prefix, merge_spaces

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        return self._cut(self._normalize(text))

    def _normalize(self, text: str) -> str:
        parts: list[str] = []
        is_prefixed, is_in_word = False, False
        for char in self._charsmap.normalize(text):
            if char == " ":
                is_in_word = False
                if not self._merge_spaces:
                    parts.append(SPACE)
                continue
            if not is_in_word:
                is_in_word = True
                if self._merge_spaces or (self._add_space_prefix and not is_prefixed):
                    parts.append(SPACE)
                    is_prefixed = True
            parts.append(char)
        return "".join(parts)

    def _cut(self, text: str) -> list[int]:
        best = [-math.inf] * (len(text) + 1)
        origin = [(self._unknown_id, 0)] * (len(text) + 1)
        best[0] = 0.0
        for begin in range(len(text)):
            has_char = False
            end = begin + 1
            while end <= len(text) and (piece := text[begin:end]) in self._beginnings:
                token = self._ids.get(piece)
                if token is not None:
                    has_char = has_char or end == begin + 1
                    score = best[begin] + self._scores[token]
                    if score > best[end]:
                        best[end], origin[end] = score, (token, begin)
                end += 1
            score = best[begin] + self._unknown_score
            if not has_char and score > best[begin + 1]:
                best[begin + 1], origin[begin + 1] = score, (self._unknown_id, begin)
        return self._trace(text, origin)

    def _trace(self, text: str, origin: list[tuple[int, int]]) -> list[int]:
        ids: list[int] = []
        begin = len(text)
        while begin > 0:
            token, begin = origin[begin]
            if token == self._unknown_id and self._byte_ids is not None:
                ids.extend(self._byte_ids[byte] for byte in reversed(text[begin].encode()))
                continue
            # A run of unknown characters is one unknown token.
            if not (ids and token == ids[-1] == self._unknown_id):
                ids.append(token)
        return ids[::-1]


class LeastCostEncoder:
    """Encodes text between special tokens: lowest sum of rounded costs, unknown characters as bytes (PLaMo 2)."""

    _SCALE, _UNKNOWN_COST, _INVALID_COST = 1e4, 10_000_000, 20_000_000

    def __init__(self, tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> None:
        """Byte tokens are `<0xXX>` of type BYTE."""
        self._ids = {text: index for index, text in enumerate(tokens) if types[index] != BYTE}
        self._costs = {text: -_round(scores[index] * self._SCALE) for text, index in self._ids.items()}
        self._max_len = max(map(len, self._ids), default=1)
        named = {text: index for index, text in enumerate(tokens) if types[index] == BYTE}
        self._bytes = [named.get(f"<0x{byte:02X}>", 0) for byte in range(256)]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; a byte order mark at its beginning is dropped."""
        text = text.removeprefix("\ufeff")
        costs = [0] * (len(text) + 1)
        lengths = [0] * (len(text) + 1)
        for begin in range(len(text) - 1, -1, -1):
            costs[begin], lengths[begin] = 1 << 60, 0
            for length in range(min(self._max_len, len(text) - begin), 0, -1):
                cost = self._costs.get(text[begin : begin + length], self._INVALID_COST)
                if cost < self._INVALID_COST and costs[begin + length] + cost < costs[begin]:
                    costs[begin], lengths[begin] = costs[begin + length] + cost, length
            if costs[begin + 1] + self._UNKNOWN_COST < costs[begin]:
                costs[begin], lengths[begin] = costs[begin + 1] + self._UNKNOWN_COST, 0
        return self._trace(text, lengths)

    def _trace(self, text: str, lengths: list[int]) -> list[int]:
        ids: list[int] = []
        begin = 0
        while begin < len(text):
            if length := lengths[begin]:
                ids.append(self._ids[text[begin : begin + length]])
                begin += length
            else:
                ids.extend(self._bytes[byte] for byte in text[begin].encode())
                begin += 1
        return ids


def _single(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _round(value: float) -> int:
    """Half away from zero, as C's round()."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value)) if math.isfinite(value) else -20_000_000
