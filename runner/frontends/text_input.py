"""Where lines come from: a line editor on a terminal, plain lines from a pipe. Knows no conversation."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from runner.console import warn
from runner.errors import UsageError
from runner.paths import state_dir

PROMPT, CONTINUATION, BLOCK = ">>> ", "... ", '"""'
_STYLE = Style.from_dict({"prompt": "ansicyan", "bottom-toolbar": "noreverse ansibrightblack"})


class LineSource(Protocol):
    """Messages of the user, one after another."""

    async def read(self) -> str | None:
        """The next message, `\"\"\"` marks taken off; None at the end of input."""


class LineEditor:
    """Editing, history, several lines, $EDITOR. `status` is the text below the line."""

    def __init__(self, *, status: Callable[[], str], commands: list[str], history: History | None = None) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=history if history is not None else open_history(),
            key_bindings=_keys(),
            multiline=Condition(lambda: is_open(self._session.default_buffer.text)),
            prompt_continuation=lambda width, number, wrapped: "" if wrapped else CONTINUATION,
            completer=_CommandCompleter(commands),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            bottom_toolbar=status,
            style=_STYLE,
            tempfile_suffix=".md",
        )

    async def read(self) -> str | None:
        """As LineSource. Ctrl-C clears the line, or hints how to leave."""
        while True:
            try:
                # The launcher handles SIGINT from outside; the key arrives as a key.
                text = await self._session.prompt_async([("class:prompt", PROMPT)], handle_sigint=False)
            except KeyboardInterrupt:
                warn_to_leave()
                continue
            except EOFError:
                return None
            if text.strip():
                return strip_block(text)


class LineReader:
    """Lines of a pipe or a file, read in a daemon thread so that nobody ever waits for it at the end."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = sys.stdin if stream is None else stream
        if isinstance(self._stream, io.TextIOWrapper):
            # In the C locale Python would let any byte through as half a character.
            self._stream.reconfigure(encoding="utf-8", errors="strict")
        self._lines: asyncio.Queue[str | UsageError | None] = asyncio.Queue()
        self._thread: threading.Thread | None = None

    async def read(self) -> str | None:
        """As LineSource; a block goes to its closing mark or the end of input. UsageError for what is no text."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._pump, args=(asyncio.get_running_loop(),), daemon=True)
            self._thread.start()
        text = ""
        while True:
            line = await self._lines.get()
            if isinstance(line, UsageError):
                raise line
            if line is None:
                self._lines.put_nowait(None)
                return strip_block(text) if text.strip() else None
            text = text + line if text else line.lstrip("\n")
            if text.strip() and not is_open(text):
                return strip_block(text.rstrip("\n"))

    def _pump(self, loop: asyncio.AbstractEventLoop) -> None:
        last: UsageError | None = None
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            try:
                for line in self._stream:
                    loop.call_soon_threadsafe(self._lines.put_nowait, line)
            except UnicodeDecodeError as error:
                last = UsageError(f"stdin is not UTF-8: {error.reason}; convert it first (iconv -t utf-8)")
            except OSError as error:
                last = UsageError(f"stdin cannot be read: {error.strerror or error}")
            loop.call_soon_threadsafe(self._lines.put_nowait, last)


class _CommandCompleter(Completer):
    """Slash commands at the start of the line."""

    def __init__(self, commands: list[str]) -> None:
        self._commands = commands

    def get_completions(self, document: Any, complete_event: Any) -> Any:
        text = document.text_before_cursor
        if text.startswith("/") and " " not in text:
            for name in self._commands:
                if name.startswith(text):
                    yield Completion(name, start_position=-len(text))


def open_history() -> History:
    """The history file, or memory with LLMRUN_NOHISTORY or where the file cannot be written."""
    if os.environ.get("LLMRUN_NOHISTORY", "").lower() not in ("", "0", "false", "no"):
        return InMemoryHistory()
    path = state_dir() / "history"
    try:
        _make_private(path)
    except OSError as error:
        warn(f"no line history: {path}: {error.strerror or error}")
        return InMemoryHistory()
    return FileHistory(str(path))


def _make_private(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)
    with path.open("a"):
        pass


def is_open(text: str) -> bool:
    """Whether a block was begun and not ended."""
    text = text.lstrip()
    return text.startswith(BLOCK) and not (text.rstrip().endswith(BLOCK) and len(text.strip()) >= 2 * len(BLOCK))


def strip_block(text: str) -> str:
    """The message without its block marks; one newline beside each mark goes too."""
    stripped = text.strip()
    if not stripped.startswith(BLOCK):
        return text.rstrip("\n")
    inner = stripped[len(BLOCK) :]
    inner = inner[: -len(BLOCK)] if inner.endswith(BLOCK) else inner
    return inner.removeprefix("\n").removesuffix("\n")


def warn_to_leave() -> None:
    """What Ctrl-C says at an empty prompt."""
    sys.stdout.write("Use /bye or Ctrl-D to leave.\n")
    sys.stdout.flush()


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("c-c")
    def _stop(event: Any) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    @keys.add("c-g")
    def _edit(event: Any) -> None:
        event.current_buffer.open_in_editor()

    @keys.add("escape", "enter")
    def _break(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys
