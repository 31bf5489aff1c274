"""in=stdin: one prompt from the pipe and the command line, one answer on stdout.

Also serves `llmrun MODEL "prompt"` on a terminal. stdout carries the answer only; everything else goes to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import threading
import uuid

from runner.catalog import Catalog
from runner.console import say, warn
from runner.errors import LlmrunError, UsageError
from runner.frontends.base import FrontendSpec
from runner.openai_requests import NO_DEFAULTS, parse_chat, request_defaults
from runner.types import ChatRequest

SIGPIPE_EXIT = 141
"""What a shell shows for a program that SIGPIPE ended: 128 + 13."""
_PIPE_BYTES = 512
"""POSIX: a pipe that is ready for writing takes this much without blocking (PIPE_BUF is at least 512)."""
_PATIENCE_S = 2.0


class StdinFrontend:
    """One prompt in, one answer out."""

    def __init__(self, spec: FrontendSpec) -> None:
        self._prompt = spec.prompt
        self._defaults = request_defaults(spec.options) if spec.options is not None else NO_DEFAULTS

    async def run(self, catalog: Catalog) -> int:
        """0, or 141 when the reader of stdout went away. Raises UsageError for an empty or unreadable prompt."""
        body = {"messages": [{"role": "user", "content": await self._read_prompt()}]}
        request = parse_chat(body, request_id=f"stdin-{uuid.uuid4().hex}", defaults=self._defaults).requests[0]
        if sys.stdout is None:
            raise LlmrunError("stdout is closed: there is nowhere to write the answer")
        answer = AnswerWriter(sys.stdout.fileno())
        try:
            await self._answer(catalog, request, answer)
        except BrokenPipeError:
            answer.abandon()
            return SIGPIPE_EXIT
        except BaseException:
            answer.break_off()
            raise
        return 0

    async def _answer(self, catalog: Catalog, request: ChatRequest, answer: AnswerWriter) -> None:
        async with contextlib.aclosing(catalog.get(request.model).generate(request)) as stream:
            async for delta in stream:
                for warning in delta.warnings:
                    warn(warning)
                await answer.write(delta.text)
                if delta.finish == "length":
                    await answer.end_line()
                    cut_at = delta.usage.completion_tokens if delta.usage else 0
                    warn(f"the answer was cut at {cut_at:,} tokens (--max-tokens, or the context is full)")
        await answer.end_line()

    async def _read_prompt(self) -> str:
        """What came through the pipe, then PROMPT (`cat f | llmrun MODEL "summarise"`), a blank line between."""
        piped = "" if _has_no_stdin() else _decode(await _read_stdin(patient=self._prompt is None))
        parts = [part for part in (piped.rstrip("\r\n"), self._prompt or "") if part.strip()]
        if not parts:
            raise UsageError('nothing to answer: stdin is empty and there is no PROMPT; try: llmrun MODEL "a question"')
        return "\n\n".join(parts)


class AnswerWriter:
    """Writes text to a file descriptor at once, without ever blocking the event loop on a slow reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = "\n"

    async def write(self, text: str) -> None:
        """All of the text, as UTF-8. Raises BrokenPipeError when nobody reads any more, LlmrunError for a full disk."""
        rest = memoryview(text.encode("utf-8", "replace"))
        try:
            while rest:
                await self._until_writable()
                rest = rest[os.write(self._fd, rest[:_PIPE_BYTES]) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise LlmrunError(f"the answer cannot be written to stdout: {error.strerror}") from error
        self._last = text[-1:] or self._last

    async def end_line(self) -> None:
        """End the last line, if it is not ended; nothing if nothing was written."""
        if self._last != "\n":
            await self.write("\n")

    def break_off(self) -> None:
        """An error or a signal ends the answer: end the line if that can be done without waiting."""
        if self._last != "\n" and self._is_writable():
            with contextlib.suppress(OSError):
                os.write(self._fd, b"\n")

    def abandon(self) -> None:
        """The reader is gone: keep Python from writing to it again at exit."""
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._fd)
            os.close(null)

    def _is_writable(self) -> bool:
        return bool(select.select([], [self._fd], [], 0)[1])

    async def _until_writable(self) -> None:
        if self._is_writable():
            return
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._fd, _resolve, ready)
        try:
            await ready
        finally:
            loop.remove_writer(self._fd)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _has_no_stdin() -> bool:
    """A terminal is not waited for; a closed stdin leaves file descriptor 0 to whoever opens a file next."""
    return sys.stdin is None or sys.stdin.isatty()


async def _read_stdin(*, patient: bool) -> bytes:
    """All bytes of stdin. Read in a daemon thread: neither the loop nor the end of the program waits for it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[bytes] = loop.create_future()

    def deliver(content: bytes, error: OSError | None) -> None:
        if not result.done():
            result.set_exception(error) if error else result.set_result(content)

    def read() -> None:
        chunks: list[bytes] = []
        failure: OSError | None = None
        try:
            while chunk := os.read(0, 1 << 20):
                chunks.append(chunk)
        except OSError as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(deliver, b"".join(chunks), failure)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    if not patient:
        done, _ = await asyncio.wait((result,), timeout=_PATIENCE_S)
        if not done:
            say("waiting for the end of stdin, which goes before PROMPT (no input? add </dev/null)")
    try:
        return await result
    except OSError as error:
        raise UsageError(f"stdin cannot be read: {error.strerror}") from error


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = content[error.start]
        raise UsageError(
            f"stdin is not UTF-8: byte 0x{bad:02x} at offset {error.start}; convert it first (iconv -t utf-8)"
        ) from error
