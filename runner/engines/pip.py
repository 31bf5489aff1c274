"""Runs pip in a process of its own: progress lines out, one clear error instead of a page of log.

Owns pip's command line, its temporary files and its end (no process survives an interrupt). Does not know engines.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from runner.engines import guard
from runner.errors import LlmrunError

OnLine = Callable[[str], None]
_LOG_LINES = 15
_FAULTS = (
    (r"No space left on device|Disk quota exceeded", "the disk is full; free some space (2 GB are enough)"),
    (
        r"Temporary failure in name resolution|NewConnectionError|Max retries exceeded|Network is unreachable|"
        r"Connection refused|ConnectTimeout|Could not find a version that satisfies",
        "the package index cannot be reached, or has no such version; check the network, --version and pip's settings",
    ),
    (
        r"ensurepip is not\s+available|No module named '?ensurepip|No module named '?venv",
        "this Python makes no environments (Debian, Ubuntu: apt install python3-venv); or install uv, which does",
    ),
    (r"No module named pip", "this Python has no pip; run: {python} -m ensurepip"),
    (
        r"CMAKE_(C|CXX)_COMPILER|No CMAKE_CXX_COMPILER could be found",
        "there is no working C++ compiler; use --prebuilt",
    ),
    (
        r"Killed|cc1plus.*(killed|terminated)|virtual memory exhausted",
        "there was too little memory to compile; use --prebuilt",
    ),
    (
        r'CUDA_ARCHITECTURES|set to "native", but no',
        "no NVIDIA GPU answers here, so its kind must be named: CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=90 (H100, H200)",
    ),
    (r"Permission denied", "a file may not be written; check the owner of the folder named in the log"),
)


class InstallFailed(LlmrunError):
    """An installation came to nothing; what was there before is untouched. `hint` is the next step."""

    def __init__(self, message: str, *, hint: str = "", log_tail: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.log_tail = log_tail


def install_into(
    folder: Path,
    requirement: str,
    *,
    env: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = (),
    on_line: OnLine | None = None,
) -> None:
    """pip install `requirement`, without its dependencies, into `folder`. Raises InstallFailed.

    Temporary files lie in `folder`/tmp, so that they go with it whatever happens.
    """
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--target", str(folder), *arguments, requirement]
    environment = {**os.environ, "TMPDIR": str(temporary), "PIP_USER": "0", "PYTHONUNBUFFERED": "1", **(env or {})}
    code, lines = run(command, environment, on_line)
    if code != 0:
        raise failure(requirement, code, lines)


def run(command: list[str], env: Mapping[str, str], on_line: OnLine | None) -> tuple[int, list[str]]:
    """Run a program to its end: its exit code and last lines. It ends with us, whatever ends us. Raises OSError."""
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    process = subprocess.Popen(
        [sys.executable, "-I", guard.__file__, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        start_new_session=True,
    )
    lines: deque[str] = deque(maxlen=400)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            if on_line is not None:
                on_line(line)
        return process.wait(), list(lines)
    finally:
        if process.poll() is None:  # an interrupt: compilers are in the same group
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


def failure(what: str, code: int, lines: list[str]) -> InstallFailed:
    """The exception for a program that failed at installing `what`."""
    text = "\n".join(lines)
    hint = ""
    for pattern, advice in _FAULTS:
        if re.search(pattern, text):
            hint = advice.format(python=sys.executable)
            break
    errors = [line for line in lines if re.match(r"\s*(ERROR|error|CMake Error)\b|.*: (fatal )?error:", line)]
    reason = errors[0].split(" (from versions")[0].strip() if errors else f"pip ended with code {code}"
    return InstallFailed(f"{what} could not be installed: {reason}", hint=hint, log_tail="\n".join(lines[-_LOG_LINES:]))
