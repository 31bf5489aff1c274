"""What is told of the vLLM that was found: by the worker to the launcher, and by it to further clients. Lines of JSON.

Shared by both sides; imports no vllm.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from runner.engines.vllm.limits import Limits
from runner.engines.vllm.settings import Adapter
from runner.errors import EngineFailed
from runner.types import EngineInfo

JOIN = "join.sock"
"""The file of the socket where further clients ask for an invitation, in the owner's private folder."""


_OLDEST = 17


class Report(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
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


class Phase(msgspec.Struct, frozen=True, tag="phase"):
    """Where a start is, for people, before there is a report."""

    text: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    """Why the worker does not start; it ends."""

    reason: str
    hint: str


Word = Report | Phase | Refusal
"""One line of the worker."""


def check_version(version: str) -> None:
    """Raises EngineFailed for a release older than our protocol; one that is newer than what we know is tried."""
    found = re.match(r"0\.(\d+)\.\d+(?!\.?dev)", version)  # builds from source may call themselves 0.1.dev123
    if found is not None and int(found[1]) < _OLDEST:
        raise EngineFailed(
            f"vLLM {version} is too old: out=vllm speaks to 0.{_OLDEST} to 0.33; `llmrun engines install vllm`"
        )


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """What a link must know to speak to an EngineCore that is ready."""

    report: Report
    adapters: tuple[Adapter, ...] = ()
    max_running: int
    max_open: int | None = None
    """Requests of this client that may be open at once (run and wait)."""
    limits: Limits | None = None
    """Set where no guard of ours stands in front of EngineCore: the launcher checks requests itself."""


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """From the owner to each further client, by way of the worker, which fills in `client` (sharing.py)."""

    opening: Opening
    info: EngineInfo
    number: int
    """Of the start, as in CoreSockets."""
    client: int = 0
