"""Tokenizer: text -> token ids -> text, the same whatever the file is that it was made from.

Owns the public face: special tokens added and parsed or not, ids to text and bytes. How one family of vocabularies
splits text is its encoder's matter (gguf_tokenizer.py, hf_tokenizer.py, sentencepiece.py, tiktoken.py). The
`tokenizers` library is imported when a tokenizer is made, not with this module.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from model_cards.card import ModelCard, TokenizerKind
from model_cards.errors import TokenizerError


class Encoder(Protocol):
    """Text -> ids, without tokens around them."""

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of `text`, which is valid Unicode; `parse_special`: control tokens written out in it become their ids."""
        ...


class Decoder(Protocol):
    """Ids -> what they stand for."""

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary writes it."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text."""
        ...


WholeDecode = Callable[[Sequence[int], bool], str]
"""(ids, skip_special) -> text, for vocabularies whose tokens add other bytes in other places (WordPiece)."""


class Tokenizer:
    """One model's tokenizer; made by `load_tokenizer`. Safe to share between requests."""

    def __init__(
        self,
        *,
        encoder: Encoder,
        decoder: Decoder,
        vocab_size: int,
        special_ids: Iterable[int],
        bos_token_id: int | None = None,
        eos_token_ids: Iterable[int] = (),
        prefix_ids: Iterable[int] = (),
        suffix_ids: Iterable[int] = (),
        strips_first_space: bool = False,
        whole_decode: WholeDecode | None = None,
        make_json: Callable[[], str] | None = None,
    ) -> None:
        """`prefix_ids`, `suffix_ids`: what `add_special` puts around a text."""
        self._encoder, self._decoder = encoder, decoder
        self.vocab_size = vocab_size
        self.special_ids = frozenset(special_ids)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        self.prefix_ids, self.suffix_ids = tuple(prefix_ids), tuple(suffix_ids)
        self.strips_first_space = strips_first_space
        """A text's leading space is the vocabulary's own (SentencePiece) and does not belong to the text."""
        self.whole_decode = whole_decode
        """None: a text is the bytes of its tokens, one after another."""
        self._make_json = make_json
        self._pieces: list[bytes | None] = [None] * vocab_size
        self.stream_tables: dict[bool, object] = {}
        """The detokenizer's own, by skip_special; here because all streams share them."""

    @property
    def add_bos(self) -> bool:
        """Whether `add_special` begins with the begin-of-text token."""
        return self.bos_token_id is not None and self.bos_token_id in self.prefix_ids

    @property
    def add_eos(self) -> bool:
        """Whether `add_special` ends with an end-of-text token."""
        return any(index in self.eos_token_ids for index in self.suffix_ids)

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Ids of `text`. Lone surrogates are encoded as U+FFFD.

        `add_special` puts the model's begin and end tokens around it (add_bos, add_eos). `parse_special` reads control
        tokens written out in the text, as chat templates write them; switch it off for text that users typed.
        """
        ids = self._encoder.encode(text if text.isascii() else _valid(text), parse_special)
        return [*self.prefix_ids, *ids, *self.suffix_ids] if add_special else ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        if self.whole_decode is not None:
            return self.whole_decode(ids, skip_special)
        skipped = self.special_ids if skip_special else ()
        text = b"".join([self.token_bytes(index) for index in ids if index not in skipped]).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_first_space else text

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary writes it (`Ġthe`, `▁the`, `<0x0A>`); empty outside the vocabulary."""
        return self._decoder.token_text(token_id) if 0 <= token_id < self.vocab_size else ""

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text (`b" the"`); empty outside the vocabulary."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        piece = self._pieces[token_id]
        if piece is None:
            piece = self._pieces[token_id] = self._decoder.token_bytes(token_id)
        return piece

    def all_token_bytes(self) -> list[bytes]:
        """`token_bytes` of the whole vocabulary, for grammar libraries."""
        return [self.token_bytes(index) for index in range(self.vocab_size)]

    def is_special(self, token_id: int) -> bool:
        """Whether `skip_special` leaves the token out."""
        return token_id in self.special_ids

    def to_json(self) -> str:
        """The tokenizer in the form of `tokenizer.json`. Raises TokenizerError where that form cannot say it."""
        if self._make_json is None:
            raise TokenizerError("this kind of tokenizer has no tokenizer.json form; use all_token_bytes()")
        return self._make_json()


_MAKERS: dict[TokenizerKind, str] = {
    "gguf": "model_cards.gguf_tokenizer:load",
    "hf": "model_cards.hf_tokenizer:load",
    "sentencepiece": "model_cards.sentencepiece:load",
    "tiktoken": "model_cards.tiktoken:load_tiktoken",
    "tekken": "model_cards.tiktoken:load_tekken",
}


def load_tokenizer(card: ModelCard) -> Tokenizer:
    """The tokenizer that `card.tokenizer` names.

    Raises TokenizerError where the card names none or the file's kind is not supported, ModelFileError where the file
    is missing, cut off or corrupt.
    """
    if card.tokenizer is None:
        reason = card.details.get("tokenizer_error", "no tokenizer file was found beside the weights")
        raise TokenizerError(f"{card.name} has no tokenizer: {reason}")
    module, function = _MAKERS[card.tokenizer.kind].split(":")
    load = getattr(importlib.import_module(module), function)
    with _no_garbage_collection():
        tokenizer: Tokenizer = load(Path(card.tokenizer.path), card)
    _return_memory()
    return tokenizer


def _valid(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _return_memory() -> None:
    """A third of what building took goes back to the system (45 of 130 MB at 128,000 tokens); glibc must be told."""
    import ctypes

    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Hundreds of thousands of small tuples make the collector run in vain: a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
