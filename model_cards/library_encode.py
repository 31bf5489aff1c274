"""Calls the `tokenizers` library so that a long text does not stop every other thread.

`encode` holds the interpreter's lock for as long as it runs (0.5 s for a megabyte); `encode_batch_fast` lets go of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

_LONG_CHARS = 4096


def encode_ids(library: tokenizers.Tokenizer, text: str) -> list[int]:
    """Ids of a text, nothing added around it."""
    if len(text) < _LONG_CHARS:
        short: list[int] = library.encode(text, add_special_tokens=False).ids
        return short
    ids: list[int] = library.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids
