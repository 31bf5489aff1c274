"""in=batch:FILE.jsonl: every line is a request; the answers stand in OUTPUT in the order of the input.

Owns the walk over the input, how many lines run at once, and the summary. Each non-blank line has exactly one line in
the output (batch_lines.py); the files and the resuming are batch_output.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import blake3

from runner.catalog import Catalog
from runner.console import say
from runner.errors import EngineDied, EngineStartFailed, LlmrunError, UsageError
from runner.frontends.base import FrontendSpec
from runner.frontends.batch_lines import LineResult, LineRunner
from runner.frontends.batch_output import BatchOutput, Identity
from runner.openai_requests import NO_DEFAULTS, request_defaults
from runner.options import RunOptions

MAX_CONCURRENCY = 4096
_WINDOW = 4
"""Lines that are begun or wait to be written, in multiples of those that run: what reordering may keep in memory."""
_BOM = b"\xef\xbb\xbf"


class BatchFrontend:
    """Made before the engine starts, so that a wrong file name costs nothing. Raises UsageError."""

    def __init__(self, spec: FrontendSpec) -> None:
        self._options: RunOptions = spec.options or RunOptions()
        self._defaults = request_defaults(spec.options) if spec.options is not None else NO_DEFAULTS
        if spec.prompt is not None:
            raise UsageError("in=batch takes its prompts from the file; leave out PROMPT")
        self._input = _check_input(spec.argument)
        output = Path(self._options.output) if self._options.output else output_path(self._input)
        if output.resolve() == self._input.resolve():
            raise UsageError(f"--output is the input, {self._input}; choose another name")
        self._output = BatchOutput(output, resume=self._options.resume)
        self._has_work = self._output.check()

    async def run(self, catalog: Catalog) -> int:
        """0 if all lines succeeded, 1 if one failed. Raises LlmrunError where the run cannot go on."""
        if not self._has_work:
            say(f"{self._output.path} is complete; nothing to resume")
            return 0
        card = catalog.default().card
        identity = _identify(self._input, model=card.name, mdcsum=card.mdcsum)
        self._output.open(identity)
        if self._output.num_lines:
            say(f"resuming after {self._output.num_lines:,} of {identity.num_lines:,} lines")
        try:
            summary = await self._run_lines(catalog, identity)
            self._output.finish()
        except (asyncio.CancelledError, EngineDied, EngineStartFailed):
            say(f"stopped: {self._output.num_lines:,} of {identity.num_lines:,} lines are in {self._output.partial}; "
                "the same command with --resume continues")  # fmt: skip
            raise
        finally:
            self._output.close()
        summary.tell(self._output.path)
        return 1 if summary.num_failed else 0

    async def _run_lines(self, catalog: Catalog, identity: Identity) -> Summary:
        runner = LineRunner(catalog, self._defaults, lenient=self._options.lenient)
        num_running = self._concurrency(catalog)
        lines = _lines_from(self._input, self._output.num_lines)
        summary = Summary()
        with _Progress(self._output.num_lines, identity.num_lines) as progress:
            async with contextlib.aclosing(_in_order(runner, lines, num_running)) as results:
                async for result in results:
                    self._output.write(result.record)
                    summary.add(result)
                    progress.advance(summary)
                    if summary.num_engine_failures_in_a_row > max(num_running, 3):
                        raise EngineDied(f"the engine fails at every line; the last one: {result.error}")
        return summary

    def _concurrency(self, catalog: Catalog) -> int:
        """--concurrency, else twice what the engine runs at once, so that it never waits for us."""
        asked = self._options.concurrency or 2 * catalog.default().info.max_running
        return max(1, min(asked, MAX_CONCURRENCY))


class Summary:
    """What the run did; on resuming, only what this run did."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.num_lines = 0
        self.num_failed = 0
        self.tokens_in = 0
        self.tokens_out = 0
        self.num_engine_failures_in_a_row = 0
        self._first_error: str | None = None

    def add(self, result: LineResult) -> None:
        """Count one line."""
        self.num_lines += 1
        self.tokens_in += result.usage.prompt_tokens
        self.tokens_out += result.usage.completion_tokens
        self.num_engine_failures_in_a_row = self.num_engine_failures_in_a_row + 1 if result.engine_failed else 0
        if result.error is not None:
            self.num_failed += 1
            self._first_error = self._first_error or result.error

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def tell(self, output: Path) -> None:
        """dynamo-run's line, then what failed and where the answers are."""
        elapsed_s = max(self.elapsed_s, 0.001)
        rate_in, rate_out = round(self.tokens_in / elapsed_s), round(self.tokens_out / elapsed_s)
        say(f"Ran {self.num_lines} files in {_duration(elapsed_s)}. Tokens in: {self.tokens_in} ({rate_in}/s). "
            f"Tokens out: {self.tokens_out} ({rate_out}/s)")  # fmt: skip
        if self.num_failed:
            say(f"{self.num_failed:,} of {self.num_lines:,} lines failed; the first: {self._first_error}")
        say(f"answers: {output}")


def output_path(source: Path) -> Path:
    """`prompts.jsonl` -> `prompts.output.jsonl`, beside it."""
    stem = source.name.removesuffix(".jsonl")
    return source.with_name(f"{stem}.output.jsonl")


async def _in_order(
    runner: LineRunner, lines: Iterator[tuple[int, bytes]], num_running: int
) -> AsyncGenerator[LineResult, None]:
    """Results in the order of the lines. At most `num_running` run, at most `_WINDOW` times that are kept."""
    slots = asyncio.Semaphore(num_running)
    window: deque[asyncio.Task[LineResult]] = deque()

    async def run_one(number: int, raw: bytes) -> LineResult:
        async with slots:
            return await runner.run(number, raw)

    try:
        while True:
            while len(window) < _WINDOW * num_running and (line := next(lines, None)) is not None:
                window.append(asyncio.create_task(run_one(*line)))
            if not window:
                return
            yield await window[0]
            window.popleft()
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)


def _check_input(argument: str) -> Path:
    if not argument:
        raise UsageError("in=batch needs a file: in=batch:prompts.jsonl")
    path = Path(argument)
    try:
        if not path.is_file():
            raise UsageError(f"missing or not a file: {path}; in=batch takes a JSON Lines file")
        if not path.stat().st_size:
            raise UsageError(f"{path} is empty; nothing to do")
        with path.open("rb"):
            return path
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _identify(path: Path, *, model: str, mdcsum: str) -> Identity:
    """Hash and count the input's lines. Raises UsageError for a file without any."""
    digest = blake3.blake3()
    num_lines = 0
    try:
        with path.open("rb") as file:
            for raw in file:
                digest.update(raw)
                num_lines += not _is_blank(raw)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if not num_lines:
        raise UsageError(f"{path} has no lines; nothing to do")
    return Identity(input_blake3=digest.hexdigest(), num_lines=num_lines, model=model, mdcsum=mdcsum)


def _lines_from(path: Path, num_done: int) -> Iterator[tuple[int, bytes]]:
    """Number (from 1, blank lines counted) and content of each line that is not blank, after the first `num_done`."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if _is_blank(raw):
                    continue
                if num_done:
                    num_done -= 1
                    continue
                yield number, raw.strip()
    except OSError as error:
        raise LlmrunError(f"{path} cannot be read any more: {error.strerror}; continue with --resume") from error


def _is_blank(raw: bytes) -> bool:
    return not raw.removeprefix(_BOM).strip()


def _duration(seconds: float) -> str:
    """As dynamo-run (humantime): 1h 2m 8s 679ms."""
    rest = round(seconds * 1000)
    parts: list[str] = []
    for unit, length_ms in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, length_ms)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0ms"


class _Progress:
    """A bar on stderr if that is a terminal, else nothing."""

    def __init__(self, num_done: int, num_lines: int) -> None:
        self._num_done = num_done
        self._num_lines = num_lines
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("", total=self._num_lines, completed=self._num_done, rate="")
        return self

    def advance(self, summary: Summary) -> None:
        """One line more is done."""
        if self._bar is not None:
            rate = f"{summary.tokens_out / max(summary.elapsed_s, 0.001):,.0f} tokens/s"
            failed = f", {summary.num_failed:,} failed" if summary.num_failed else ""
            self._bar.update(self._task, advance=1, rate=rate + failed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
