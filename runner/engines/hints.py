"""The likely fix for an engine process that failed: a table of what the log or the signal says."""

from __future__ import annotations

import re
import signal

_BY_SIGNAL = {
    signal.SIGKILL: "something else killed it; most often the system ran out of memory: take a smaller model, a "
    "stronger quantization or a shorter --context-length, or close other programs",
    signal.SIGILL: "the library was built for another CPU; build it here with `llmrun engines install`",
    signal.SIGSEGV: "the library crashed inside its own code (segmentation fault); install it again with "
    "`llmrun engines install`, or try another build of it",
    signal.SIGBUS: "a mapped file was cut short or the disk failed; check the model file (download it again)",
    signal.SIGABRT: "the library gave up by itself; the log lines above say why",
}

_BY_TEXT = (
    (
        r"out of memory|cannot allocate|can't allocate|bad_alloc|MemoryError|OutOfMemory|failed to allocate",
        "there is not enough memory: take a smaller model, a stronger quantization, a shorter --context-length or "
        "fewer requests at once (--parallel)",
    ),
    (
        r"cannot open shared object file|Library not loaded|undefined symbol|GLIBC\w*_[\d.]+' not found",
        "a shared library is missing or too old; install the engine again with `llmrun engines install`",
    ),
    (r"No module named '?([\w.]+)", "a Python package is missing: install {0} into the environment of this engine"),
    (r"Address already in use|EADDRINUSE", "another process has this port; stop it or choose another port"),
    (r"No space left on device", "the disk is full; free some space"),
    (r"Too many open files", "raise the limit of open files (`ulimit -n 65536`)"),
    (r"Permission denied|PermissionError", "a file may not be read or written; check its owner and mode"),
    (r"No such file or directory|FileNotFoundError", "a file is not there; check the path"),
    (r"CUDA driver version is insufficient|no kernel image is available", "the GPU driver is too old for this build"),
    (r"no CUDA-capable device|No CUDA GPUs are available", "there is no usable GPU; check `nvidia-smi`"),
    (r"illegal instruction", _BY_SIGNAL[signal.SIGILL]),
)


def likely_fix(text: str, returncode: int | None = None) -> str:
    """One sentence, or an empty string. `text` is the reason and the last log lines."""
    for pattern, hint in _BY_TEXT:
        match = re.search(pattern, text, re.IGNORECASE)
        if match is not None:
            return hint.format(*match.groups())
    if returncode is not None and returncode < 0:
        return next((hint for number, hint in _BY_SIGNAL.items() if number == -returncode), "")
    return ""


def describe_exit(returncode: int | None) -> str:
    """How a process ended, in words."""
    if returncode is None:
        return "it does not answer any more"
    if returncode >= 0:
        return f"it exited with code {returncode}"
    number = -returncode
    name = next((known.name for known in signal.Signals if known == number), "unknown")
    return f"it was killed by signal {number} ({name})"
