"""in=text: a chat in the terminal. Owns the loop: read a message, show the answer, handle Ctrl-C and errors.

The conversation is text_session.py's, commands text_commands.py's, drawing text_render.py's. On a pipe every line is a
message, and the answers are plain.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncGenerator
from typing import Protocol

from model_cards.errors import CardError
from runner.catalog import Catalog
from runner.console import colours, report, say, style, warn
from runner.errors import ContextOverflow, EngineDied, LlmrunError
from runner.frontends.base import FrontendSpec
from runner.frontends.text_commands import Action, SlashCommands, View, unescape
from runner.frontends.text_input import PROMPT, LineEditor, LineReader, LineSource
from runner.frontends.text_render import DIM, MarkdownStream, printable
from runner.frontends.text_session import ChatSession
from runner.openai_requests import NO_DEFAULTS, request_defaults
from runner.options import RunOptions
from runner.types import TextDelta


class _Printer(Protocol):
    def push(self, text: str) -> None: ...

    def finish(self) -> None: ...


class TextFrontend:
    """One conversation with the catalog's default model."""

    def __init__(self, spec: FrontendSpec) -> None:
        options: RunOptions = spec.options or RunOptions()
        self._first = spec.prompt
        self._defaults = request_defaults(options) if spec.options is not None else NO_DEFAULTS
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._view = View(markdown=not options.plain and colours(sys.stdout), stats=options.verbose > 0)
        self._num_failed = 0
        self._printing: asyncio.Task[str | None] | None = None

    async def run(self, catalog: Catalog) -> int:
        """Until /bye or the end of input. 1 if input was a pipe and an answer failed, else 0."""
        session = ChatSession(catalog.get(str(self._defaults.fields.get("model", ""))), self._defaults)
        commands = SlashCommands(session, catalog, self._view, _tell)
        lines = self._line_source(session, commands)
        if self._terminal:
            self._take_interrupts()
        self._greet(session)
        first, self._first = self._first, None
        if first and self._terminal:
            _write(f"{PROMPT}{first}\n")
        while (line := first or await lines.read()) is not None:
            first = None
            message = unescape(line)
            action = Action.NOTHING if message is not None else commands.run(line)
            if action is Action.LEAVE:
                break
            if message is not None:
                await self._show(session, session.ask(message))
            elif action is Action.REGENERATE:
                await self._show(session, session.regenerate())
        return 1 if self._num_failed and not self._terminal else 0

    def _take_interrupts(self) -> None:
        """From here on SIGINT stops the answer, if one is being shown; else (Ctrl-C is a key then) it ends the run."""
        run = asyncio.current_task()
        assert run is not None

        def interrupt() -> None:
            (self._printing or run).cancel()

        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)

    def _line_source(self, session: ChatSession, commands: SlashCommands) -> LineSource:
        if not self._terminal:
            return LineReader()
        return LineEditor(status=lambda: f" {session.service.card.name} · {session.fill()}", commands=commands.names())

    def _greet(self, session: ChatSession) -> None:
        if self._terminal:
            context = f", context {session.context_length:,} tokens" if session.context_length else ""
            say(f"{session.service.card.name} on {session.service.info.name}{context}. /help for help, /bye to leave.")

    async def _show(self, session: ChatSession, answer: AsyncGenerator[TextDelta, None]) -> None:
        """Show one answer. Ctrl-C ends it and nothing else; an error is told and the conversation goes on."""
        try:
            stopped, finish = await self._interruptible(answer)
        except (LlmrunError, CardError) as error:
            self._num_failed += 1
            _explain(error)
            return
        if stopped:
            _tell("(stopped)")
        elif finish == "length":
            _tell(_cut(session))
        if self._view.stats and session.last_timer and not stopped:
            say(f"{session.last_timer.summary()}; {session.fill()}")

    async def _interruptible(self, answer: AsyncGenerator[TextDelta, None]) -> tuple[bool, str | None]:
        """Print until the end or a SIGINT: (was it stopped, finish reason)."""
        printing = self._printing = asyncio.create_task(self._print(answer))
        try:
            return False, await printing
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._terminal or (task is not None and task.cancelling()):
                printing.cancel()
                await asyncio.gather(printing, return_exceptions=True)
                raise
            return True, None
        finally:
            self._printing = None

    async def _print(self, answer: AsyncGenerator[TextDelta, None]) -> str | None:
        printer: _Printer = MarkdownStream(_write) if self._view.markdown else PlainPrinter(self._terminal)
        thoughts = ThoughtPrinter()
        finish = None
        try:
            async with contextlib.aclosing(answer) as stream:
                async for delta in stream:
                    for warning in delta.warnings:
                        warn(warning)
                    thoughts.push(delta.reasoning or "")
                    if delta.text:
                        thoughts.finish()
                        printer.push(delta.text)
                    sys.stdout.flush()
                    finish = delta.finish or finish
        finally:
            thoughts.finish()
            printer.finish()
            sys.stdout.flush()
        return finish


class PlainPrinter:
    """Text as it is; on a terminal without control characters. The last line is ended."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._last = ""

    def push(self, text: str) -> None:
        """Show more text."""
        _write(printable(text) if self._terminal else text)
        self._last = text[-1:] or self._last

    def finish(self) -> None:
        """End the last line."""
        if self._last not in ("", "\n"):
            _write("\n")


class ThoughtPrinter:
    """Reasoning, dimmed, on stderr: it is not the answer."""

    def __init__(self) -> None:
        self._is_open = False

    def push(self, text: str) -> None:
        """Show more of it."""
        if text:
            self._is_open = True
            sys.stderr.write(style(printable(text), DIM, sys.stderr))
            sys.stderr.flush()

    def finish(self) -> None:
        """End the last line, once."""
        if self._is_open:
            self._is_open = False
            sys.stderr.write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)


def _tell(text: str) -> None:
    say(text)


def _cut(session: ChatSession) -> str:
    if session.is_full():
        return f"(cut: the context is full, {session.fill()}; /clear, or start with a larger --context-length)"
    return "(cut at max_tokens; /set max_tokens N, or `default`)"


def _explain(error: LlmrunError | CardError) -> None:
    report(error)
    if isinstance(error, ContextOverflow):
        say("the message was not sent: /clear forgets the conversation; or restart with a larger --context-length")
    elif isinstance(error, EngineDied):
        say("the message was taken back; send it again (arrow up) and the engine is started anew")
    else:
        say("the message was taken back; arrow up brings it again")
