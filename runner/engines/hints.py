"""The cause and the likely fix of an engine process that failed, from its log and the way it ended.

Owns the reading; the table is hint_rows.py, and an engine may have rows of its own (EngineEntry.hints).
"""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Iterable

from runner.engines import ENGINES
from runner.engines.hint_rows import NOT_BUILT_FOR_THIS_CPU, ROWS, Row
from runner.registry import load

_CAUSE_LIMIT = 300
_PREFIX = re.compile(
    r"^(?:\([^)]*pid=\d+\)|\[rank\d+\]:?|\[[\d\- :,.TZ+]+[^\]]*\]|(?:ERROR|CRITICAL)\s[\d\- :.]+\[\S+\])\s*"
)
_EXCEPTION = re.compile(
    r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Refused|Failed)\b(?::\s*\S.*)?$"
)
_VALIDATION = re.compile(r"\d+ validation errors? for \S+$")

_BY_SIGNAL = {
    signal.SIGKILL: "something else killed it; most often the system ran out of memory: take a smaller model, a "
    "stronger quantization or a shorter --context-length, or close other programs",
    signal.SIGILL: NOT_BUILT_FOR_THIS_CPU,
    signal.SIGSEGV: "the library crashed inside its own code (segmentation fault); install it again with "
    "`llmrun engines install`, or try another build of it",
    signal.SIGBUS: "a mapped file was cut short or the disk failed; check the model file (download it again)",
    signal.SIGABRT: "the library gave up by itself; the log lines above say why",
}


def likely_fix(text: str, returncode: int | None = None, engine: str = "") -> str:
    """One sentence, or an empty string. `text` is the last log lines and the reason; the cause counts most."""
    rows = (*_own_rows(engine), *ROWS)
    for part in (find_cause(text), text):
        advice = _advice(rows, part)
        if advice:
            return _named(advice, engine)
    if returncode is not None and returncode < 0:
        return _named(next((hint for number, hint in _BY_SIGNAL.items() if number == -returncode), ""), engine)
    return ""


def find_cause(log: str) -> str:
    """The line of a log that says why: its last exception, without the marks of loggers; empty where there is none."""
    after: list[str] = []
    for line in reversed(log.splitlines()):
        text = line.strip()
        while (shorter := _PREFIX.sub("", text)) != text:
            text = shorter
        if _EXCEPTION.match(text):
            text += _said_by_pydantic(text, reversed(after))
            return text if len(text) <= _CAUSE_LIMIT else text[: _CAUSE_LIMIT - 1] + "…"
        after.append(text)
    return ""


def _said_by_pydantic(text: str, after: Iterable[str]) -> str:
    """What stands in the lines after `1 validation error for NAME`: a place and a sentence, or the sentence alone."""
    if not _VALIDATION.search(text):
        return ""
    said = " ".join(itertools.takewhile(lambda line: not line.startswith("For further information"), after))
    said = said.partition(" [type=")[0].removeprefix("Value error, ")
    return f": {said}" if said else ""


def describe_exit(returncode: int | None) -> str:
    """How a process ended, in words."""
    if returncode is None:
        return "it does not answer any more"
    if returncode >= 0:
        return f"it exited with code {returncode}"
    number = -returncode
    name = next((known.name for known in signal.Signals if known == number), "unknown")
    return f"it was killed by signal {number} ({name})"


def _advice(rows: Iterable[Row], text: str) -> str:
    for pattern, advice in rows:
        match = re.search(pattern, text, re.IGNORECASE)
        if match is not None:
            return advice.format(*match.groups())
    return ""


def _named(advice: str, engine: str) -> str:
    """The command that installs this very engine."""
    if engine not in ENGINES:
        return advice
    return advice.replace("ENGINE", engine).replace("`llmrun engines install`", f"`llmrun engines install {engine}`")


def _own_rows(engine: str) -> tuple[Row, ...]:
    entry = ENGINES.get(engine)
    if entry is None or not entry.hints:
        return ()
    rows: tuple[Row, ...] = load(entry.hints)
    return rows
