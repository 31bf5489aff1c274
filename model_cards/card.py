"""ModelCard: everything above the engines that makes one model answer the way it does.

Owns the record, its JSON round trip, its checksum and its slug. Does not know how a card is found (resolve.py).
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

WeightsKind = Literal["gguf", "hf", "trtllm", "none"]
TokenizerKind = Literal["gguf", "hf", "sentencepiece", "tiktoken", "tekken"]


class TokenizerRef(msgspec.Struct, frozen=True, kw_only=True):
    """Where the tokenizer comes from; `path` is the file (GGUF, tokenizer.json, tokenizer.model, tekken.json ...)."""

    kind: TokenizerKind
    path: str


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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


def slugify(name: str) -> str:
    """Dynamo's rule (facts: lib/runtime/src/slug.rs): lowercase, `[a-z0-9_-]` kept, else `_`, no leading `_`."""
    return re.sub(r"[^a-z0-9_-]", "_", name.lower()).lstrip("_")
