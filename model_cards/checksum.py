"""mdcsum: one number for everything that changes a model's answers, the same on every host.

Owns what counts. Names, paths, times and texts for people do not; tokenizer, template, stop ids, limits, sampling
defaults and the weights do. Weights are sampled (size and 16 pieces of 64 KiB a file), so that a hundred gigabytes take
milliseconds: two fine-tunes of one model differ in almost every piece.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
from blake3 import blake3

from model_cards.card import ModelCard, TokenizerRef
from model_cards.errors import ModelFileError

_COUNTED = (
    "architecture",
    "context_length",
    "vocab_size",
    "bos_token_id",
    "eos_token_ids",
    "chat_template",
    "named_templates",
    "special_tokens",
    "add_bos",
    "add_eos",
    "sampling",
    "tool_parser",
    "reasoning_parser",
    "kv_cache_block_size",
)
_PIECE_BYTES = 64 * 1024
_NUM_PIECES = 16
_GGUF_HEAD_BYTES = 32 * 1024 * 1024


def checksum(card: ModelCard, weight_files: Iterable[Path] = ()) -> str:
    """blake3 hex of `card` and of samples of its weights. Raises ModelFileError where a file cannot be read."""
    fields = {name: getattr(card, name) for name in _COUNTED}
    digest = blake3(msgspec.json.encode(fields, order="deterministic"))
    try:
        if card.tokenizer is not None:
            digest.update(_tokenizer_digest(card.tokenizer))
        for path in weight_files:
            _add_samples(digest, path)
        for adapter in card.adapters:
            for path in sorted(p for p in [Path(adapter), *Path(adapter).glob("*.safetensors")] if p.is_file()):
                _add_samples(digest, path)
    except OSError as error:
        raise ModelFileError(f"cannot read {error.filename}: {error.strerror}") from error
    return digest.hexdigest()


def _tokenizer_digest(ref: TokenizerRef) -> bytes:
    digest = blake3()
    if ref.kind == "gguf":
        # Metadata comes first in a GGUF file; 256 thousand tokens with merges take 15 MB. Reading bytes is ten times
        # faster than taking the arrays apart.
        with Path(ref.path).open("rb") as file:
            digest.update(file.read(_GGUF_HEAD_BYTES))
    else:
        digest.update_mmap(ref.path)
    return digest.digest()


def _add_samples(digest: blake3, path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        for number in range(_NUM_PIECES):
            file.seek(max(0, size - _PIECE_BYTES) * number // (_NUM_PIECES - 1))
            digest.update(file.read(_PIECE_BYTES))
