"""The contract of frontends: a frontend is given the catalog of served models and runs until it is done."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from runner.catalog import Catalog


class FrontendSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`in=NAME:ARGUMENT` and what the user chose for it. `options` are the resolved run options (runner.options)."""

    name: str
    argument: str = ""
    prompt: str | None = None
    options: Any = None


class Frontend(Protocol):
    """A class `Frontend(spec: FrontendSpec)`; named in the table of runner.frontends."""

    async def run(self, catalog: Catalog) -> int:
        """Serve until finished; returns the exit code. Raises LlmrunError or CardError for the launcher to report."""
