"""ModelCard: everything above the engines that makes one model answer the way it does.

Owns the record, its JSON round trip and its slug. Does not know how a card is found (resolve.py) or how its checksum
is made (checksum.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from model_cards.errors import CardError, ModelFileError, ModelNotFound

CARD_FORMAT = "llmrun-card-1"
"""First field of a card file; a reader that does not know it refuses the file."""

WeightsKind = Literal["gguf", "hf", "trtllm", "none"]
TokenizerKind = Literal["gguf", "hf", "sentencepiece", "tiktoken", "tekken"]


class TokenizerRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the tokenizer comes from; `path` is the file (GGUF, tokenizer.json, tokenizer.model, tekken.json ...)."""

    kind: TokenizerKind
    path: str


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One model, resolved. Plain data: no open files, no tokenizer object."""

    name: str
    """Served name (`--model-name`, else Hub id, folder name or GGUF file name without extension)."""
    source: str
    """What the user typed."""
    kind: WeightsKind = "none"
    path: str | None = None
    """GGUF file (first shard), HF folder or engine folder on this machine."""
    architecture: str | None = None
    context_length: int = 0
    """Tokens; 0 is unknown."""
    vocab_size: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Every id that ends a turn (eos, eot, eom, generation_config's list)."""
    tokenizer: TokenizerRef | None = None
    chat_template: str | None = None
    named_templates: dict[str, str] = {}
    """Further templates by name (`tool_use`, `rag`)."""
    special_tokens: dict[str, str] = {}
    """Template variables: bos_token, eos_token, unk_token, pad_token as text."""
    add_bos: bool = False
    add_eos: bool = False
    sampling: dict[str, Any] = {}
    """Defaults out of generation_config.json; names as in runner.types.SamplingParams."""
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    adapters: tuple[str, ...] = ()
    kv_cache_block_size: int = 16
    details: dict[str, Any] = {}
    """For people: parameters, quantization, file size, layers, heads ..."""
    mdcsum: str = ""
    """blake3 hex over what changes answers; the same on every host."""

    @property
    def slug(self) -> str:
        """Name usable in keys and subjects."""
        return slugify(self.name)

    def to_json(self) -> str:
        """The card as JSON; `from_json` reads it back."""
        body = {"format": CARD_FORMAT, **msgspec.to_builtins(self)}
        return msgspec.json.format(msgspec.json.encode(body), indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes, *, origin: str = "the card") -> ModelCard:
        """Read a card. Raises ModelFileError that names `origin` and the field that is missing, unknown or wrong."""
        try:
            body = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{origin} is not valid JSON: {error}") from None
        found = body.pop("format", None) if isinstance(body, dict) else None
        if found != CARD_FORMAT:
            got = f"format {found!r}" if found is not None else "no format"
            raise ModelFileError(f'{origin} is not a model card: it has {got}; "format": "{CARD_FORMAT}" is wanted')
        try:
            return msgspec.convert(body, cls)
        except msgspec.ValidationError as error:
            raise ModelFileError(f"{origin} is not a valid model card: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a card file; paths below the file's folder are written relative to it. Raises CardError."""
        target = Path(path)
        moved = _map_paths(self, lambda name: _relative(Path(name), target.parent))
        try:
            target.write_text(moved.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise CardError(f"cannot write the card {target}: {error.strerror}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModelCard:
        """Read a card file; relative paths are taken from the file's folder. Raises ModelNotFound, ModelFileError."""
        origin = Path(path)
        try:
            text = origin.read_bytes()
        except FileNotFoundError:
            raise ModelNotFound(f"{origin}: no such file") from None
        except OSError as error:
            raise ModelFileError(f"cannot read the card {origin}: {error.strerror}") from error
        card = cls.from_json(text, origin=str(origin))
        return _map_paths(card, lambda name: str(origin.parent / Path(name).expanduser()))


def _map_paths(card: ModelCard, change: Callable[[str], str]) -> ModelCard:
    tokenizer = card.tokenizer
    if tokenizer is not None:
        tokenizer = msgspec.structs.replace(tokenizer, path=change(tokenizer.path))
    path = change(card.path) if card.path is not None else None
    adapters = tuple(change(adapter) for adapter in card.adapters)
    return msgspec.structs.replace(card, path=path, tokenizer=tokenizer, adapters=adapters)


def _relative(path: Path, folder: Path) -> str:
    absolute, base = path.absolute(), folder.absolute()
    return str(absolute.relative_to(base)) if absolute.is_relative_to(base) else str(absolute)


def slugify(name: str) -> str:
    """Dynamo's rule (facts: lib/runtime/src/slug.rs): lowercase, `[a-z0-9_-]` kept, else `_`, no leading `_`."""
    return re.sub(r"[^a-z0-9_-]", "_", name.lower()).lstrip("_")
