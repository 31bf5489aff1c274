"""Steps: what a long command is doing, on stderr: which step and for how long on a terminal, plain lines elsewhere.

Owns the one status line of a terminal. Does not know what the steps are; a word of the caller's starts each.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from runner.console import style

_TICK_S = 1.0
_CLEAR_LINE = "\r\x1b[K"
_PASSING = "downloading "
"""Steps that begin so are many and quick: on a terminal the next one takes their line."""


class Steps:
    """Use it as a context manager, and `say` each step as it begins."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._began = time.monotonic()
        self._step = ""
        self._step_began = self._began
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Steps:
        if self._is_terminal:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._is_terminal:
            self._ticker.join()
        with self._lock:
            self._finish_step(is_done=error is None)
        if error is None and self.elapsed_s >= 1.0:
            self._write(style(f"done in {duration(self.elapsed_s)}", "2", self._stream) + "\n")

    @property
    def elapsed_s(self) -> float:
        """Since this was made."""
        return time.monotonic() - self._began

    def say(self, step: str) -> None:
        """A step begins, and the one before it has ended."""
        with self._lock:
            self._finish_step(is_done=True)
            self._step, self._step_began = step, time.monotonic()
            self._draw()

    def _tick(self) -> None:
        while not self._is_over.wait(_TICK_S):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        if not self._is_terminal:
            self._write(f"{self._step}\n")
            return
        took = time.monotonic() - self._step_began
        text = f"{self._step} …" + (f" {duration(took)}" if took >= _TICK_S else "")
        width = shutil.get_terminal_size().columns - 1
        text = text if len(text) <= width else f"{text[: width - 1]}…"
        self._write(_CLEAR_LINE + style(text, "2", self._stream))

    def _finish_step(self, *, is_done: bool) -> None:
        """Leave the line of the step that was drawn last, with its time."""
        if not self._step or not self._is_terminal:
            return
        took = time.monotonic() - self._step_began
        kept = "" if self._step.startswith(_PASSING) and is_done else self._step
        if kept and took >= _TICK_S:
            kept += f" ({duration(took)})"
        self._write(_CLEAR_LINE + (style(kept, "2", self._stream) + "\n" if kept else ""))
        self._step = ""

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed stderr must not end an installation
            self._stream.write(text)
            self._stream.flush()


def duration(seconds: float) -> str:
    """`7 s`, `2 min 5 s`."""
    whole = int(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
