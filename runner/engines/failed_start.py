"""What is told of an engine's process that did not become ready: cause, last words, likely fix, log."""

from __future__ import annotations

from runner.engines.hints import find_cause, likely_fix
from runner.engines.supervisor import ChildProcess
from runner.errors import EngineStartFailed

_TAIL_LINES = 60
_TOLD_LINES = 20


def failed_start(
    process: ChildProcess, *, reason: str = "", hint: str = "", code: int | None = None
) -> EngineStartFailed:
    """The exception. `reason` is what the engine itself or a limit said; without it the log is asked."""
    tail = process.log_tail(_TAIL_LINES)
    cause = "" if reason else find_cause(tail)
    told = reason or ": ".join(part for part in (process.describe_end(), cause) if part)
    hint = hint or likely_fix(f"{tail}\n{told}", code, process.name)
    last_words = "\n".join(tail.splitlines()[-_TOLD_LINES:])
    parts = [f"the engine {process.name} did not start: {told}"]
    if not reason and not cause and last_words:
        parts.append("its last words:\n" + last_words)
    if hint:
        parts.append(f"likely fix: {hint}")
    parts.append(f"log: {process.log_path}")
    return EngineStartFailed("\n".join(parts), log_tail=last_words, hint=hint)
