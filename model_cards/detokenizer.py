"""Detokenizer: token ids as they come -> text as soon as it is certain.

Owns what is held back: bytes that may yet become a character. Does not know stop strings or parsers, which hold text
back for their own reasons. One detokenizer serves one stream.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from model_cards.tokenizer import Tokenizer

_WINDOW = 6
"""Tokens before the new ones that a tokenizer without fixed pieces is shown for context."""

_make_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Incremental decoding; what `push` and `flush` return, joined, is the text of all ids.

    With `prompt_ids` the ids continue that prompt: a SentencePiece token keeps its leading space, and a character that
    the prompt left unfinished is finished. Without, the text is `tokenizer.decode(ids)` exactly.
    """

    def __init__(self, tokenizer: Tokenizer, *, prompt_ids: Sequence[int] = (), skip_special: bool = True) -> None:
        """Costs the same for any length of prompt."""
        self._tokenizer = tokenizer
        self._pieces = _visible_pieces(tokenizer, skip_special)
        decoder = _make_decoder("replace")
        self._decode = decoder.decode
        self._strips = tokenizer.strips_first_space and not self._has_text(prompt_ids)
        self._window: _Window | None = None
        if tokenizer.whole_decode is not None:
            self._window = _Window(tokenizer, prompt_ids, skip_special)
        elif prompt_ids:
            self._decode(_unfinished(self._pieces, prompt_ids))

    def push(self, ids: Iterable[int]) -> str:
        """Text that `ids` complete; never ends within a character."""
        if self._window is not None:
            return self._window.push(ids)
        pieces = self._pieces
        text = self._decode(b"".join([pieces[index] for index in ids]))
        return self._strip(text) if self._strips and text else text

    def push_one(self, token_id: int) -> str:
        """`push` of one id, the hot path of a stream."""
        if self._window is not None:
            return self._window.push((token_id,))
        text = self._decode(self._pieces[token_id])
        return self._strip(text) if self._strips and text else text

    def flush(self) -> str:
        """The rest: U+FFFD for a character that was never finished. The stream is over."""
        if self._window is not None:
            return self._window.flush()
        text = self._decode(b"", True)
        return self._strip(text) if self._strips and text else text

    def _strip(self, text: str) -> str:
        self._strips = False
        return text.removeprefix(" ")

    def _has_text(self, ids: Sequence[int]) -> bool:
        pieces = self._pieces
        return any(pieces[index] for index in ids)


class _Pieces(dict[int, bytes]):
    """id -> bytes, filled at first use; special ids that are skipped add nothing."""

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int]) -> None:
        super().__init__()
        self._tokenizer, self._skipped = tokenizer, skipped

    def __missing__(self, token_id: int) -> bytes:
        piece = b"" if token_id in self._skipped else self._tokenizer.token_bytes(token_id)
        self[token_id] = piece
        return piece


def _visible_pieces(tokenizer: Tokenizer, skip_special: bool) -> dict[int, bytes]:
    """The tokenizer's own table, shared by all streams."""
    table = tokenizer.piece_tables.get(skip_special)
    if table is None:
        skipped = tokenizer.special_ids if skip_special else frozenset()
        table = tokenizer.piece_tables[skip_special] = _Pieces(tokenizer, skipped)
    return table


def _unfinished(pieces: dict[int, bytes], prompt_ids: Sequence[int]) -> bytes:
    """Bytes at the end of the prompt that begin a character (at most three)."""
    tail = b""
    for index in reversed(prompt_ids):
        tail = pieces[index] + tail
        if len(tail) > 3 or any(byte < 0x80 for byte in tail):
            break
    for length in range(1, min(3, len(tail)) + 1):
        lead = tail[-length]
        if lead >= 0xC0:
            # Too short for what its first byte announces: it goes on.
            return tail[-length:] if length < (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4) else b""
        if lead < 0x80:
            break
    return b""


class _Window:
    """For vocabularies whose tokens have no fixed bytes: decode the last few again with the new ones, keep what is new.

    The two offsets are those of vLLM's detokenizer: text up to `_read` has been given out; decoding begins at `_start`.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skip_special: bool) -> None:
        assert tokenizer.whole_decode is not None
        self._whole_decode, self._skip_special = tokenizer.whole_decode, skip_special
        self._ids = list(prompt_ids[-_WINDOW:])
        self._start, self._read = 0, len(self._ids)

    def push(self, ids: Iterable[int]) -> str:
        self._ids.extend(ids)
        return self._take(is_last=False)

    def flush(self) -> str:
        return self._take(is_last=True)

    def _take(self, is_last: bool) -> str:
        before = self._whole_decode(self._ids[self._start : self._read], self._skip_special)
        now = self._whole_decode(self._ids[self._start :], self._skip_special)
        if len(now) <= len(before) or (now.endswith("\ufffd") and not is_last):
            return ""
        del self._ids[: self._start]
        self._read = len(self._ids)
        self._start = max(0, self._read - _WINDOW)
        return now[len(before) :]
