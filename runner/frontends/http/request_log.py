"""One line on stderr for each request: readable on a terminal, JSON elsewhere. Written behind the requests' backs.

Lines are collected and handed to a thread a few times a second, so that a slow terminal or pipe delays no token.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sys
import threading
import time
from typing import Any, TextIO

from runner.openai_responses import encode

_FLUSH_AFTER_S = 0.1
_LINES_PER_WRITE = 8
"""Small writes to a pipe are not torn apart by those of other workers (PIPE_BUF, 4096 bytes)."""
_MAX_WAITING = 1000
"""Blocks of lines; beyond that stderr is stuck, and lines are counted and left out rather than eat the memory."""


class RequestLog:
    """Where finished requests are written. Use as an async context manager."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._num_lost = 0
        self._blocks: queue.Queue[str | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._write_blocks, name="request-log", daemon=True)

    async def __aenter__(self) -> RequestLog:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._flush()
        with contextlib.suppress(queue.Full):
            self._blocks.put_nowait(None)
        await asyncio.to_thread(self._thread.join, 1.0)

    def write(self, fields: dict[str, Any]) -> None:
        """Log one request; fields that are None are left out."""
        self._lines.append(_as_text(fields) if self._is_terminal else _as_json(fields))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_AFTER_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        if self._num_lost:
            lines.append(f"({self._num_lost} request log lines were left out: stderr was stuck)\n")
            self._num_lost = 0
        for start in range(0, len(lines), _LINES_PER_WRITE):
            block = lines[start : start + _LINES_PER_WRITE]
            try:
                self._blocks.put_nowait("".join(block))
            except queue.Full:
                self._num_lost += len(block)

    def _write_blocks(self) -> None:
        while (block := self._blocks.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # stderr is closed: nobody to tell
                self._write_block(block)

    def _write_block(self, block: str) -> None:
        """Past the stream's buffer: a thread that is stuck in it would block the interpreter's exit."""
        try:
            number = self._stream.fileno()
        except (OSError, ValueError, AttributeError):  # no real file (tests)
            self._stream.write(block)
            return
        data = block.encode()
        while data:
            data = data[os.write(number, data) :]


def _as_json(fields: dict[str, Any]) -> str:
    stamped = {"time": time.time(), **{key: value for key, value in fields.items() if value is not None}}
    return encode(stamped).decode() + "\n"


def _as_text(fields: dict[str, Any]) -> str:
    """`12:00:00 POST /v1/chat/completions 200 0.52s ttft 0.04s 12+96 tokens id`."""
    parts = [time.strftime("%H:%M:%S"), fields["method"], fields["path"], str(fields["status"])]
    parts.append(f"{fields['duration_s']:.2f}s")
    if fields.get("ttft_s") is not None:
        parts.append(f"ttft {fields['ttft_s']:.2f}s")
    if fields.get("completion_tokens") is not None:
        parts.append(f"{fields.get('prompt_tokens', 0)}+{fields['completion_tokens']} tokens")
    parts.append(fields["request_id"])
    if fields.get("error"):
        parts.append(encode(fields["error"]).decode())
    return " ".join(parts) + "\n"
