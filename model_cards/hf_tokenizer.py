"""Tokenizer out of a Hugging Face `tokenizer.json`.

Owns the reading of its decoder and post-processor: which bytes a token stands for, what stands around a text. The
file's own normalizer, pre-tokenizer, model and added tokens are the `tokenizers` library's work.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_cards.card import ModelCard
from model_cards.errors import ModelFileError, ModelNotFound, TokenizerError
from model_cards.library_encode import encode_ids
from model_cards.token_pieces import SPACE, alphabet_bytes, byte_token, raw_bytes, spaced_bytes
from model_cards.tokenizer import Tokenizer, WholeDecode

if TYPE_CHECKING:
    import tokenizers


def load(path: Path, card: ModelCard | None = None) -> Tokenizer:
    """Tokenizer of the `tokenizer.json` at `path`; begin and end ids come from `card`."""
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelNotFound(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    return make_tokenizer(source, str(path), card)


def make_tokenizer(source: str, name: str, card: ModelCard | None = None) -> Tokenizer:
    """Tokenizer out of the text of a `tokenizer.json`; `name` is for errors."""
    from tokenizers import Tokenizer as Library

    try:
        library = Library.from_str(source)
    except Exception as error:  # the library raises Exception itself
        raise ModelFileError(f"{name} is not a tokenizer.json that can be read: {error}") from error
    library.no_truncation()
    library.no_padding()
    prefix, suffix = _surroundings(library)
    added = library.get_added_tokens_decoder()
    settings = json.loads(library.decoder.__getstate__()) if library.decoder is not None else None
    decoder, strips_first_space = _make_decoder(library, settings, {index: t.content for index, t in added.items()})
    return Tokenizer(
        encoder=_LibraryEncoder(library),
        decoder=decoder,
        # Added tokens may leave gaps behind the model's own ids.
        vocab_size=max(library.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1),
        special_ids=[index for index, token in added.items() if token.special],
        bos_token_id=card.bos_token_id if card is not None else None,
        eos_token_ids=card.eos_token_ids if card is not None else (),
        prefix_ids=prefix,
        suffix_ids=suffix,
        strips_first_space=strips_first_space,
        whole_decode=None if decoder.has_pieces else _whole_decode(library),
        make_json=lambda: str(library.to_str()),
    )


class _LibraryEncoder:
    """The library finds added tokens itself; a switch on the object, not an argument, says whether it should.

    So there are two objects, the second one made when it is first asked for: threads must not flip a shared switch.
    """

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._library = library
        self._plain: tokenizers.Tokenizer | None = None
        self._lock = threading.Lock()

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """See tokenizer.Encoder."""
        return encode_ids(self._library if parse_special else self._plain_library(), text)

    def _plain_library(self) -> tokenizers.Tokenizer:
        with self._lock:
            if self._plain is None:
                plain = type(self._library).from_str(self._library.to_str())
                plain.encode_special_tokens = True
                self._plain = plain
            return self._plain


class _LibraryDecoder:
    """Texts and bytes by the style that the file's decoder shows."""

    def __init__(self, library: tokenizers.Tokenizer, to_bytes: Callable[[str], bytes] | None, added: dict[int, str]):
        self._library, self._to_bytes, self._added = library, to_bytes, added
        self.has_pieces = to_bytes is not None

    def token_text(self, token_id: int) -> str:
        """See tokenizer.Decoder."""
        return self._library.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """See tokenizer.Decoder."""
        if self._to_bytes is None:
            return raw_bytes(self._library.decode([token_id], skip_special_tokens=False))
        if token_id in self._added:
            return raw_bytes(self._added[token_id])
        return self._to_bytes(self.token_text(token_id))


def _make_decoder(
    library: tokenizers.Tokenizer, decoder: dict[str, Any] | None, added: dict[int, str]
) -> tuple[_LibraryDecoder, bool]:
    """The decoder, and whether it takes a leading space away. Unknown decoders fall back on decoding whole texts."""
    parts = _flatten(decoder)
    kinds = [part["type"] for part in parts]
    to_bytes: Callable[[str], bytes] | None = None
    strips = False
    if kinds == ["ByteLevel"]:
        to_bytes = alphabet_bytes
    elif kinds == ["Metaspace"] and parts[0].get("replacement", SPACE) == SPACE:
        to_bytes, strips = spaced_bytes, parts[0].get("prepend_scheme", "always") != "never"
    elif kinds in (_SPM_KINDS, [*_SPM_KINDS, "Strip"]) and parts[0]["pattern"] == {"String": SPACE}:
        to_bytes, strips = _spaced_or_byte, len(kinds) > len(_SPM_KINDS)
    return _LibraryDecoder(library, to_bytes, added), strips


_SPM_KINDS = ["Replace", "ByteFallback", "Fuse"]


def _spaced_or_byte(text: str) -> bytes:
    piece = byte_token(text)
    return piece if len(piece) == 1 and len(text) == 6 else spaced_bytes(text)


def _flatten(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [part for inner in decoder["decoders"] for part in _flatten(inner)]
    return [decoder]


def _whole_decode(library: tokenizers.Tokenizer) -> WholeDecode:
    def decode(ids: Sequence[int], skip_special: bool) -> str:
        return str(library.decode(list(ids), skip_special_tokens=skip_special))

    return decode


def _surroundings(library: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the post-processor puts before and after a text."""
    plain: list[int] = library.encode("a", add_special_tokens=False).ids
    full: list[int] = library.encode("a", add_special_tokens=True).ids
    for begin in range(len(full) - len(plain) + 1):
        if full[begin : begin + len(plain)] == plain:
            return full[:begin], full[begin + len(plain) :]
    raise TokenizerError("the tokenizer.json's post-processor changes the text's own tokens, which is not supported")
