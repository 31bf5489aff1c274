"""pystr:FILE.py and pytok:FILE.py, the launcher's side: the user's Python file as an engine (dynamo-run's contract).

The file runs once, in a child process, as `__main__`, with its own folder on sys.path and sys.argv = [file, flags,
what stands after `--`]. It must define `async def generate(request)`, an async generator:

    pytok   request {"model", "token_ids": [1, 2], "stop_conditions": {"max_tokens", "min_tokens", "stop",
            "stop_token_ids_hidden", "ignore_eos"}, "sampling_options": {"temperature", "seed", ...},
            "eos_token_ids": [2], "mdc_sum", "annotations": []};
            yields {"token_ids": [5], "finish_reason": "stop"} (the reason is optional)
    pystr   request: the OpenAI request {"model", "messages": [...], "temperature", ...} or {"model", "prompt", ...};
            yields OpenAI chunks {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]}

What runs in the child is user_file.py's. See examples/pytok_echo.py and examples/pystr_upper.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec

from runner.engines.base import EngineSpec
from runner.engines.process import ProcessEngine
from runner.engines.text_service import TextService
from runner.errors import EngineStartFailed
from runner.types import ChatRequest, EngineInfo, TextDelta


def make_pytok(spec: EngineSpec) -> ProcessEngine:
    """out=pytok:FILE.py. Raises EngineStartFailed when there is no such file."""
    return ProcessEngine(_with_file(spec), "runner.engines.user_file:PytokEngine", shape="async")


def make_pystr(spec: EngineSpec) -> PystrService:
    """out=pystr:FILE.py. Raises EngineStartFailed when there is no such file."""
    return PystrService(_with_file(spec))


def _with_file(spec: EngineSpec) -> EngineSpec:
    path = Path(spec.argument).expanduser()
    if not spec.argument or not path.is_file():
        shown = str(path) if spec.argument else "no file"
        raise EngineStartFailed(
            f"out={spec.name} needs a Python file, as in out={spec.name}:engine.py; got {shown}, which is not there"
        )
    return msgspec.structs.replace(spec, argument=str(path.resolve()))


class PystrService(TextService):
    """A ChatService whose answers a user's file makes, in a child process."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._process = ProcessEngine(spec, "runner.engines.user_file:PystrSource", shape="text")

    async def start(self) -> EngineInfo:
        """See ChatService."""
        self._process.on_progress = self.on_progress
        self.info = await self._process.start()
        return self.info

    async def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        """See ChatService."""
        async with contextlib.aclosing(self._process.chat(request)) as stream:
            async for delta in stream:
                yield delta

    async def health(self) -> None:
        """See ChatService."""
        await self._process.health()

    async def stats(self) -> dict[str, float]:
        """See ChatService."""
        return await self._process.stats()

    async def close(self) -> None:
        """See ChatService."""
        await self._process.close()
