"""What the worker tells the launcher of the vLLM that it found: one line of JSON, before the model loads.

Shared by both sides; imports no vllm.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`structs`: field names of EngineCore's array-like structs in wire order; they move between releases."""

    version: str
    structs: dict[str, list[str]]
    vocab_size: int
    max_logprobs: int
    """-1 is no limit."""
    is_pooling: bool
    platform: str
    sampling_fields: list[str]
    details: dict[str, Any] = {}
