"""WordPieceEncoder: BERT's words and longest matches, as llama.cpp's WPM tokenizer does them.

Owns the normalization and the matching (`llm_tokenizer_wpm_session`, src/llama-vocab.cpp). A vocabulary in a GGUF file
marks the beginnings of words with U+2581 where BERT's own marks the rest with `##`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping

from model_cards.token_pieces import SPACE

_HAN = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_MAX_CACHED = 20_000


class WordPieceEncoder:
    """Encodes text between special tokens."""

    def __init__(self, ids: Mapping[str, int], unknown_id: int, *, lowercase: bool, strip_accents: bool) -> None:
        """`ids` is text -> id with U+2581 at the beginnings of words."""
        self._ids, self._unknown_id = ids, unknown_id
        self._lowercase, self._strip_accents = lowercase, strip_accents
        self._max_len = max((len(text.encode("utf-8", "surrogateescape")) for text in ids), default=0)
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        ids: list[int] = []
        for word in self._words(text):
            found = self._cache.get(word)
            if found is None:
                found = self._encode_word(word)
                if len(self._cache) < _MAX_CACHED:
                    self._cache[word] = found
            ids.extend(found)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        marked = SPACE + word
        ids, begin = [], 0
        while begin < len(marked):
            for end in range(min(len(marked), begin + self._max_len), begin, -1):
                token = self._ids.get(marked[begin:end])
                if token is not None:
                    ids.append(token)
                    begin = end
                    break
            else:
                return [self._unknown_id]
        return ids

    def _words(self, text: str) -> Iterator[str]:
        word = ""
        for char in text:
            if self._strip_accents:
                char = unicodedata.normalize("NFD", char)[0]
            category = unicodedata.category(char)
            if _is_space(char):
                if word:
                    yield word
                word = ""
                continue
            if char in "\0\ufffd" or (category[0] == "C" and category != "Cn"):
                continue
            if self._strip_accents and category[0] == "M":
                continue
            if self._lowercase:
                char = char.lower()[0]
            if category[0] == "P" or (char < "\x7f" and category[0] == "S") or _is_han(ord(char)):
                if word:
                    yield word
                yield char
                word = ""
            else:
                word += char
        if word:
            yield word


def _is_space(char: str) -> bool:
    # Python counts the information separators as whitespace; Unicode's White_Space, which llama.cpp has, does not.
    return char.isspace() and not "\x1c" <= char <= "\x1f"


def _is_han(code: int) -> bool:
    return any(first <= code <= last for first, last in _HAN)
