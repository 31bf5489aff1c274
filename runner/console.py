"""What people read on stderr: notes, warnings, errors. Answers go to stdout and never pass here.

Colours only on a terminal, and never with NO_COLOR.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import TextIO

from model_cards.errors import CardError
from runner.errors import EngineStartFailed, LlmrunError, UsageError

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_LOG_TAIL_LINES = 20
_OUR_ERRORS = ("runner.errors.", "model_cards.errors.")


def colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that wants colours."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def style(text: str, code: str, stream: TextIO) -> str:
    """Text in an ANSI style (`2` dim, `1;31` bold red), plain where colours are not wanted."""
    return f"\x1b[{code}m{text}\x1b[0m" if colours(stream) else text


def say(message: str) -> None:
    """A note, in one line, to stderr."""
    _write(style(message, "2", sys.stderr))


def warn(message: str) -> None:
    """A warning to stderr."""
    _write(style("warning: ", "1;33", sys.stderr) + message)


def report(error: BaseException, *, verbose: int = 0) -> int:
    """Print an error for people and return the exit code. With -vv the traceback comes first."""
    if verbose >= 2:
        _write("".join(traceback.format_exception(error)).rstrip())
    _write_log_tail(error, verbose)
    _write(style("error: ", "1;31", sys.stderr) + _message(error))
    hint = getattr(error, "hint", "")
    if hint and hint not in str(error):
        _write(style("fix: ", "1;32", sys.stderr) + hint)
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE


def _write_log_tail(error: BaseException, verbose: int) -> None:
    """The last log lines of a failed start or installation, unless the message has them, or they are only the traceback
    of the very error that is reported.
    """
    tail = str(getattr(error, "log_tail", "")).rstrip()
    lines = tail.splitlines()[-_LOG_TAIL_LINES:]
    is_ours = bool(lines) and (lines[-1].strip().startswith(_OUR_ERRORS) or tail in str(error))
    if lines and (verbose or not is_ours):
        of = "the engine's" if isinstance(error, EngineStartFailed) else "the"
        _write(style(f"{of} last log lines:", "2", sys.stderr))
        _write("\n".join(f"  {line}" for line in lines))


def _message(error: BaseException) -> str:
    if isinstance(error, LlmrunError | CardError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    return f"{type(error).__name__}: {error} (this is a bug of llmrun; -vv shows where)"


def _write(text: str) -> None:
    # A closed stderr must not turn a message into a crash.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
