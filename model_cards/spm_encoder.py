"""SpmEncoder: text -> ids the way llama.cpp's SPM tokenizer does it, merging by the scores of the merged tokens.

Owns two ways to the same ids: a `tokenizers` BPE model whose merges are made out of the scores (fast), and the
algorithm itself (`llm_tokenizer_spm_session`, src/llama-vocab.cpp) for the few texts where a list of merges cannot say
what scores say. Knows nothing of special tokens.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from model_cards.library_encode import encode_ids

if TYPE_CHECKING:
    import tokenizers

SPACE = "\u2581"
"""What stands for a space in a vocabulary."""

_WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
_WORD_END = re.compile(f"[^{SPACE}]{SPACE}")
_MAX_CACHED = 20_000
_MAX_CACHED_LEN = 64
_MAX_DOUBTFUL = 10_000
"""Doubtful texts beyond which every text is (vocabularies whose scores say nothing)."""

Merge = tuple[str, str]


class SpmEncoder:
    """Encodes text between special tokens; spaces must have been replaced by U+2581."""

    def __init__(
        self, ids: Mapping[str, int], scores: Sequence[float], unknown_id: int, mergeable: Collection[int] | None
    ):
        """`mergeable`: ids that merging may produce, None for all (llama.cpp)."""
        self._ids = dict(ids) if mergeable is None else {text: i for text, i in ids.items() if i in mergeable}
        self._scores = scores
        self._bytes = [ids.get(f"<0x{byte:02X}>", ids.get(chr(byte), unknown_id)) for byte in range(256)]
        merges = merges_by_score(self._ids, scores)
        self._doubtful = _doubtful_pattern(merges, self._ids, scores)
        self._model = _make_model(ids, merges, unknown_id)
        # Where no token reaches over the end of a word, words can be encoded one by one.
        self._has_words = not any(_WORD_END.search(text) for text in self._ids)
        self._cache: dict[str, list[int]] = {}

    @property
    def model(self) -> tokenizers.Tokenizer:
        """The `tokenizers` model without normalizer, special tokens or decoder."""
        return self._model

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which spaces are U+2581."""
        if self._doubtful is None or not self._doubtful.search(text):
            return self._encode_fast(text)
        if not self._has_words:
            return self.encode_exactly(text)
        ids: list[int] = []
        for is_doubtful, words in itertools.groupby(_WORD.findall(text), self._is_doubtful):
            if is_doubtful:
                ids.extend(itertools.chain.from_iterable(map(self._encode_word, words)))
            else:
                ids.extend(self._encode_fast("".join(words)))
        return ids

    def _encode_fast(self, text: str) -> list[int]:
        return encode_ids(self._model, text)

    def _is_doubtful(self, word: str) -> bool:
        return self._doubtful is not None and self._doubtful.search(word) is not None

    def _encode_word(self, word: str) -> list[int]:
        ids = self._cache.get(word)
        if ids is None:
            ids = self.encode_exactly(word)
            if len(self._cache) < _MAX_CACHED and len(word) < _MAX_CACHED_LEN:
                self._cache[word] = ids
        return ids

    def encode_exactly(self, text: str) -> list[int]:
        """The algorithm itself, about 3 us a character."""
        symbols: list[str] = list(text)
        following = [*range(1, len(symbols)), -1]
        previous = list(range(-1, len(symbols) - 1))
        queue: list[tuple[float, int, int, str]] = []
        for right in range(1, len(symbols)):
            self._push(queue, symbols, right - 1, right)
        while queue:
            _, left, right, merged = heapq.heappop(queue)
            # Outdated where one side has grown or is gone since.
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != merged:
                continue
            symbols[left], symbols[right] = merged, ""
            after = following[left] = following[right]
            if after >= 0:
                previous[after] = left
                self._push(queue, symbols, left, after)
            if previous[left] >= 0:
                self._push(queue, symbols, previous[left], left)
        return [token for symbol in symbols if symbol for token in self._ids_of(symbol)]

    def _push(self, queue: list[tuple[float, int, int, str]], symbols: list[str], left: int, right: int) -> None:
        merged = symbols[left] + symbols[right]
        token = self._ids.get(merged)
        if token is not None:
            heapq.heappush(queue, (-self._scores[token], left, right, merged))

    def _ids_of(self, symbol: str) -> list[int]:
        token = self._ids.get(symbol)
        return [self._bytes[byte] for byte in symbol.encode("utf-8", "replace")] if token is None else [token]


def _make_model(ids: Mapping[str, int], merges: list[Merge], unknown_id: int) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, models

    unknown = next((text for text, index in ids.items() if index == unknown_id), None)
    has_bytes = "<0x00>" in ids
    return Tokenizer(models.BPE(dict(ids), merges, unk_token=unknown, fuse_unk=False, byte_fallback=has_bytes))


def merges_by_score(ids: Mapping[str, int], scores: Sequence[float]) -> list[Merge]:
    """Every way to make a token out of two tokens, the best score first."""
    found: list[tuple[float, int, str, str]] = []
    for text, token in ids.items():
        score = -scores[token]
        for cut in range(1, len(text)):
            left = text[:cut]
            if left in ids:
                right = text[cut:]
                if right in ids:
                    found.append((score, token, left, right))
    found.sort(key=lambda item: (item[0], item[1]))
    return [(left, right) for _, _, left, right in found]


def _doubtful_pattern(
    merges: Sequence[Merge], ids: Mapping[str, int], scores: Sequence[float]
) -> re.Pattern[str] | None:
    """Matches texts that merges in a fixed order may encode in another way than scores do; None where there are none.

    Three cases. (1) Merges of equal score meet in `a b c`: the leftmost must win, the list has one of them first.
    (2) Several tokens have one score, and one of them is a part of a token that scores better: which of the equals came
    first decides what comes next. (3) A character is no token itself but a part of one: the scores may join it, the
    list cannot.
    """
    texts = {char for text in ids if len(text) > 1 for char in text if char not in ids}
    texts |= _overtaken(merges, ids, scores)
    texts.update(itertools.islice(_colliding(merges, ids, scores), _MAX_DOUBTFUL))
    if len(texts) >= _MAX_DOUBTFUL:
        return re.compile("")
    return re.compile("|".join(map(re.escape, sorted(texts, key=len)))) if texts else None


def _overtaken(merges: Sequence[Merge], ids: Mapping[str, int], scores: Sequence[float]) -> set[str]:
    merged = {left + right for left, right in merges}
    num_tokens = collections.Counter(scores[ids[text]] for text in merged)
    return {
        part
        for merge in merges
        for part in merge
        if len(part) > 1 and num_tokens[scores[ids[part]]] > 1 and scores[ids["".join(merge)]] >= scores[ids[part]]
    }


def _colliding(merges: Sequence[Merge], ids: Mapping[str, int], scores: Sequence[float]) -> Iterator[str]:
    """Texts `left middle right` where `middle right` comes before `left middle` in the list at equal score."""
    for _, group in itertools.groupby(merges, key=lambda merge: scores[ids[merge[0] + merge[1]]]):
        earlier: dict[str, list[str]] = {}
        for left, middle in group:
            for right in earlier.get(middle, ()):
                yield left + middle + right
            earlier.setdefault(left, []).append(middle)
