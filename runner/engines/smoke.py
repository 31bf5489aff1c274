"""Smoke test of a native library, in a process of its own: some builds crash at their first real work.

The example that made this file: llama.cpp built by gcc 12 on a CPU with AMX dies by SIGSEGV at the first decode of any
quantised model, unless weights are not repacked. Owns running the variants and remembering which one works, once per
library (path, time of change, size). Does not know what a variant does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from runner import paths
from runner.errors import EngineStartFailed

_TIMEOUT_S = 120.0


def first_working(
    library: Path,
    variants: Mapping[str, list[str]],
    *,
    hint: str,
    say: Callable[[str], None] | None = None,
) -> str:
    """Name of the first variant whose command exits with 0. Says one line when it is not the first of all.

    Raises EngineStartFailed when none works; that is not remembered.
    """
    key = _key(library)
    memory = _read_memory()
    known = memory.get(key)
    if known is not None and known in variants:
        return known
    failures: list[str] = []
    for name, command in variants.items():
        failure = _run(command)
        if failure is None:
            _remember(key, name)
            if failures:
                (say or _say)(f"{library.name} crashes with {failures[0]}; using {name} from now on")
            return name
        failures.append(f"{name} ({failure})")
    raise EngineStartFailed(f"{library} cannot compute: {'; '.join(failures)}", hint=hint)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def _run(command: list[str]) -> str | None:
    """None when it worked, else how it ended."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        return f"no end after {_TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-done.returncode).name
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"exit code {done.returncode}: {last}"


def _key(library: Path) -> str:
    path = library.resolve()
    status = path.stat()
    return f"{path}|{status.st_mtime_ns}|{status.st_size}"


def _file() -> Path:
    return paths.state_dir() / "smoke.json"


def _read_memory() -> dict[str, str]:
    try:
        memory = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}


def _remember(key: str, name: str) -> None:
    """Best effort: a folder that cannot be written costs half a second at each start, no more."""
    temporary = _file().with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**_read_memory(), key: name}, indent=1))
        temporary.replace(_file())
