"""Tokenizer out of a SentencePiece `tokenizer.model` (BPE and unigram).

Owns the reading of its protocol buffer (google/sentencepiece, src/sentencepiece_model.proto) and its normalization
settings. The merging and searching is spm_encoder.py's and unigram_encoder.py's. Tokens added beside the file
(`added_tokens.json`, `tokenizer_config.json`) belong to the vocabulary.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from model_cards.card import ModelCard
from model_cards.charsmap import Charsmap
from model_cards.errors import ModelFileError, ModelNotFound, TokenizerError
from model_cards.gguf_tokenizer import EncodeFragment, FragmentEncoder, VocabDecoder, spm_json
from model_cards.gguf_vocab import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, GgufVocab, check_lengths, pack_types
from model_cards.pretokenizers import PRE_TOKENIZERS
from model_cards.spm_encoder import SPACE, SpmEncoder
from model_cards.tokenizer import Tokenizer
from model_cards.unigram_encoder import UnigramEncoder

_UNIGRAM, _BPE = 1, 2
_MAX_BYTES = 256 << 20


class SentencePieceModel(NamedTuple):
    """What a `tokenizer.model` holds; defaults are the format's own."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    model_type: int = _UNIGRAM
    ids: dict[str, int] = {}
    """"unknown", "bos", "eos" -> id."""
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True


def load(path: Path, card: ModelCard | None = None) -> Tokenizer:
    """Tokenizer of the `tokenizer.model` at `path`."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelFileError(
                f"{path} has {path.stat().st_size} bytes; a SentencePiece model has at most {_MAX_BYTES}"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelNotFound(f"{path}: no such file") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from error
    if data[:512].isascii() and b" " in data[:512]:
        # Llama 3 ships tiktoken's ranks under this name.
        from model_cards.tiktoken import load_tiktoken

        return load_tiktoken(path, card)
    try:
        model = parse_model(data)
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        raise ModelFileError(f"{path} is not a SentencePiece model, or is cut off: {error}") from error
    if not model.pieces:
        raise ModelFileError(f"{path} is not a SentencePiece model: it has no pieces")
    check_lengths(model.pieces, str(path))
    return _make_tokenizer(model, read_added_tokens(path.parent), card, str(path))


def parse_model(data: bytes) -> SentencePieceModel:
    """The fields of a ModelProto. Raises ValueError, IndexError or struct.error where `data` is none."""
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            pieces.append(piece.get(1, b"").decode())
            scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
            types.append(piece.get(3, NORMAL))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    ids = {name: _signed(trainer.get(field, default)) for name, field, default in _ID_FIELDS}
    return SentencePieceModel(
        pieces,
        scores,
        types,
        trainer.get(3, _UNIGRAM),
        {name: index for name, index in ids.items() if 0 <= index < len(pieces)},
        normalizer.get(2, b""),
        bool(normalizer.get(3, True)),
        bool(normalizer.get(4, True)),
    )


_ID_FIELDS = (("unknown", 40, 0), ("bos", 41, 1), ("eos", 42, 2))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, int for varints, bytes for the rest) of one message."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if position + length > len(data):
            raise ValueError(f"a field of {length} bytes at byte {position} of {len(data)}")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than ten bytes at byte {position}")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def read_added_tokens(folder: Path) -> dict[int, tuple[str, bool]]:
    """Tokens that the files beside the model add: id -> (text, is special)."""
    added: dict[int, tuple[str, bool]] = {}
    for text, index in _read_json(folder / "added_tokens.json").items():
        if isinstance(index, int):
            added[index] = (text, True)
    decoder = _read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    for index, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and str(index).isdecimal() and isinstance(token.get("content"), str):
            added[int(index)] = (token["content"], bool(token.get("special", False)))
    return added


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not JSON that can be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _make_tokenizer(
    model: SentencePieceModel, added: dict[int, tuple[str, bool]], card: ModelCard | None, name: str
) -> Tokenizer:
    vocab = _make_vocab(model, added)
    if model.model_type == _BPE:
        spm = SpmEncoder(vocab.ids, vocab_scores(model, vocab), model.ids.get("unknown", 0), set(vocab.ids_of(NORMAL)))
        fragment = _bpe_fragments(spm, model)
        make_json = (lambda: spm_json(spm.model, vocab)) if not model.charsmap else None
    elif model.model_type == _UNIGRAM:
        fragment, make_json = _unigram_fragments(model, vocab), None
    else:
        raise TokenizerError(
            f"{name}: SentencePiece model type {model.model_type} is not supported; BPE and unigram are"
        )
    bos = card.bos_token_id if card is not None and card.bos_token_id is not None else model.ids.get("bos")
    ends = card.eos_token_ids if card is not None and card.eos_token_ids else (model.ids.get("eos"),)
    eos = [index for index in ends if index is not None]
    return Tokenizer(
        encoder=FragmentEncoder(vocab, fragment, inline_ids=vocab.ids_of(USER_DEFINED)),
        decoder=VocabDecoder(vocab),
        vocab_size=len(vocab.tokens),
        special_ids=vocab.ids_of(CONTROL, UNKNOWN),
        bos_token_id=bos,
        eos_token_ids=eos,
        prefix_ids=[bos] if bos is not None and (card is None or card.add_bos) else [],
        suffix_ids=eos[:1] if card is not None and card.add_eos else [],
        strips_first_space=model.add_dummy_prefix,
        make_json=make_json,
    )


def _make_vocab(model: SentencePieceModel, added: dict[int, tuple[str, bool]]) -> GgufVocab:
    tokens, types = list(model.pieces), list(model.types)
    for index in sorted(added):
        text, is_special = added[index]
        if index < len(model.pieces):
            if is_special and tokens[index] == text and types[index] == USER_DEFINED:
                types[index] = CONTROL
            continue
        if index > len(tokens) + 100_000:
            raise ModelFileError(f"added token {text!r} has id {index}; the vocabulary has {len(tokens)}")
        while len(tokens) < index:
            tokens.append(f"[UNUSED_{len(tokens)}]")
            types.append(UNUSED)
        tokens.append(text)
        types.append(CONTROL if is_special else USER_DEFINED)
    ids = {text: index for index, text in reversed(list(enumerate(tokens)))}
    prefix = model.add_dummy_prefix
    pre, packed = PRE_TOKENIZERS["default"], pack_types(types)
    return GgufVocab("llama", "default", pre, tokens, ids, packed, model.ids, add_space_prefix=prefix)


def vocab_scores(model: SentencePieceModel, vocab: GgufVocab) -> list[float]:
    """The model's scores, zeros for added tokens."""
    return model.scores + [0.0] * (len(vocab.tokens) - len(model.scores))


def _bpe_fragments(spm: SpmEncoder, model: SentencePieceModel) -> EncodeFragment:
    charsmap = Charsmap(model.charsmap)

    def encode(text: str, is_after_special: bool) -> list[int]:
        text = charsmap.normalize(text)
        if model.remove_extra_whitespaces:
            text = " ".join(part for part in text.split(" ") if part)
        if not text:
            return []
        prefix = SPACE if model.add_dummy_prefix and is_after_special else ""
        return spm.encode(prefix + text.replace(" ", SPACE))

    return encode


def _unigram_fragments(model: SentencePieceModel, vocab: GgufVocab) -> EncodeFragment:
    unigram = UnigramEncoder(
        vocab.tokens,
        vocab.types,
        vocab_scores(model, vocab),
        unknown_id=model.ids.get("unknown", 0),
        charsmap=model.charsmap,
        add_space_prefix=model.add_dummy_prefix,
        merge_spaces=model.remove_extra_whitespaces,
        byte_ids=[vocab.ids[f"<0x{byte:02X}>"] for byte in range(256)] if "<0x00>" in vocab.ids else None,
    )
    return lambda text, _: unigram.encode(text)
