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


class Detokenizer:
    """Incremental decoding; what `push` and `flush` return, joined, is the text of all ids.

    With `prompt_ids` the ids continue that prompt: the first token keeps its leading space (after a prompt that is only
    the begin-of-text token too, as llama.cpp has it), and a character that the prompt left unfinished is finished.
    Without, the text is `tokenizer.decode(ids)` exactly.
    """

    def __init__(self, tokenizer: Tokenizer, *, prompt_ids: Sequence[int] = (), skip_special: bool = True) -> None:
        """Costs the same for any length of prompt."""
        self._texts = _texts_of(tokenizer, skip_special)
        self._pieces = self._texts.pieces
        self._strips = tokenizer.strips_first_space and not prompt_ids
        self._pending = b""
        self._window: _Window | None = None
        if tokenizer.whole_decode is not None:
            self._window = _Window(tokenizer, prompt_ids, skip_special)
        elif prompt_ids:
            self._pending = _unfinished(self._pieces, prompt_ids)
        self._is_between = self._settled()

    def push(self, ids: Sequence[int]) -> str:
        """Text that `ids` complete; never ends within a character."""
        if len(ids) == 1:
            return self.push_one(ids[0])
        if self._window is not None:
            return self._window.push(ids)
        pieces = self._pieces
        return self._feed(b"".join([pieces[index] for index in ids]))

    def push_one(self, token_id: int) -> str:
        """`push` of one id, the hot path of a stream: nearly always one look-up."""
        if self._is_between:
            text = self._texts[token_id]
            if text is not None:
                return text
        if self._window is not None:
            return self._window.push((token_id,))
        return self._feed(self._pieces[token_id])

    def flush(self) -> str:
        """The rest: U+FFFD for a character that was never finished. The stream is over."""
        return self._window.flush() if self._window is not None else self._feed(b"", is_last=True)

    def _feed(self, data: bytes, is_last: bool = False) -> str:
        data = self._pending + data
        text, used = codecs.utf_8_decode(data, "replace", is_last)
        self._pending = data[used:]
        if self._strips and text:
            text = text.removeprefix(" ")
            self._strips = False
        self._is_between = self._settled()
        return text

    def _settled(self) -> bool:
        """Whether the next token's text can be given out as it is: nothing is pending, nothing to strip."""
        return self._window is None and not self._strips and not self._pending


class _Pieces(dict[int, bytes]):
    """id -> bytes, filled at first use; special ids that are skipped add nothing."""

    def __init__(self, tokenizer: Tokenizer, skipped: frozenset[int]) -> None:
        super().__init__()
        self._tokenizer, self._skipped = tokenizer, skipped

    def __missing__(self, token_id: int) -> bytes:
        piece = b"" if token_id in self._skipped else self._tokenizer.token_bytes(token_id)
        self[token_id] = piece
        return piece


class _Texts(dict[int, str | None]):
    """id -> text, None for a token that is not whole characters; filled at first use, shared by all streams."""

    def __init__(self, pieces: _Pieces) -> None:
        super().__init__()
        self.pieces = pieces

    def __missing__(self, token_id: int) -> str | None:
        text: str | None
        try:
            text = self.pieces[token_id].decode()
        except UnicodeDecodeError:
            text = None
        self[token_id] = text
        return text


def _texts_of(tokenizer: Tokenizer, skip_special: bool) -> _Texts:
    texts = tokenizer.stream_tables.get(skip_special)
    if texts is None:
        skipped = tokenizer.special_ids if skip_special else frozenset()
        texts = tokenizer.stream_tables[skip_special] = _Texts(_Pieces(tokenizer, skipped))
    assert isinstance(texts, _Texts)
    return texts


def _unfinished(pieces: dict[int, bytes], prompt_ids: Sequence[int]) -> bytes:
    """Bytes at the end of the prompt that begin a character (at most three). What can be none already is the prompt's
    own U+FFFD (a byte 0xC0 or 0xFF, a surrogate's 0xED 0xA0), and not the answer's."""
    tail = b""
    for index in reversed(prompt_ids):
        tail = pieces[index] + tail
        if len(tail) > 3 or any(byte < 0x80 for byte in tail):
            break
    for length in range(1, min(3, len(tail)) + 1):
        lead = tail[-length]
        if lead >= 0xC0:  # begins anew, whatever stands before it
            begun = tail[-length:]
            return begun[codecs.utf_8_decode(begun, "replace", False)[1] :]
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
        if not now.startswith(before):  # a character that the prompt left unfinished has been finished
            before = before.rstrip("\ufffd")
        if len(now) <= len(before) or (now.endswith("\ufffd") and not is_last):
            return ""
        del self._ids[: self._start]
        self._read = len(self._ids)
        self._start = max(0, self._read - _WINDOW)
        return now[len(before) :]
