"""A program for pty tests: the text frontend over a scripted service that answers with what it was told."""

from __future__ import annotations

import asyncio
import sys

from runner.catalog import Catalog
from runner.errors import EngineFailed
from runner.frontends.base import FrontendSpec
from runner.frontends.text import TextFrontend
from runner.options import RunOptions
from runner.types import ChatRequest
from tests.runner.frontends.text_fakes import Piece, ScriptedService


def answer(request: ChatRequest) -> list[Piece]:
    """`slow` streams for long, `fail` fails half-way, everything else is said back."""
    text = str((request.messages or [{}])[-1]["content"])
    if text == "slow":
        return [piece for number in range(500) for piece in (f"word{number} ", 0.05)]
    if text == "fail":
        return ["half an ", EngineFailed("the engine broke on purpose")]
    num = len(request.messages or [])
    return [f"[{num}] ", "you ", "said ", f"**{text!r}**"]


async def main() -> int:
    catalog = Catalog()
    catalog.add(ScriptedService(make=answer))
    options = RunOptions(plain="--plain" in sys.argv)
    return await TextFrontend(FrontendSpec(name="text", options=options)).run(catalog)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
