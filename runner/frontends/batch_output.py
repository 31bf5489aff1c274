"""The output file of a batch run: written in order, one line an input line, resumable after a kill.

Owns the files: OUTPUT.partial grows while the run lasts and becomes OUTPUT by an atomic rename; beside it
OUTPUT.partial.json says which input and model it belongs to. Does not know what a line says, save whether it records an
engine's failure.

    OUTPUT.partial   | complete lines | engine failures at the end | torn line |
                     | kept by --resume | done again                           |
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

import msgspec

from runner.errors import LlmrunError, UsageError

ENGINE_FAILURE = "engine_error"
"""`error.type` of a line that failed by the engine's fault; --resume does such lines at the end again."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a partial output belongs to."""

    input_blake3: str
    num_lines: int
    model: str
    mdcsum: str = ""


class BatchOutput:
    """Raises UsageError for what the user can put right before the run, LlmrunError for what happens during it."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self._sidecar = path.with_name(path.name + ".partial.json")
        self._resume = resume
        self._fd: int | None = None
        self.num_lines = 0
        """Complete lines in the file."""
        self.num_bytes = 0

    def check(self) -> bool:
        """False if a finished output is there and --resume has nothing to do."""
        try:
            return self._has_work()
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}; choose another --output") from error

    def _has_work(self) -> bool:
        if not self.path.parent.is_dir():
            raise UsageError(f"no folder {self.path.parent} for the output; make it, or choose another --output")
        if self.partial.exists():
            if not self._resume:
                raise UsageError(f"{self.partial} is there from an unfinished run; continue it with --resume, "
                                 "or remove it")  # fmt: skip
            return True
        if self.path.exists():
            if self._resume and self.path.is_file():
                return False
            raise UsageError(f"{self.path} exists already; remove it, or choose another --output")
        return True

    def open(self, identity: Identity) -> None:
        """Begin the file, or continue it: afterwards `num_lines` lines are done."""
        continues = self.partial.exists()
        try:
            self._fd = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if continues and self._sidecar.exists():
                self._check_identity(identity)
                self._cut_to_complete_lines(identity)
            else:
                os.ftruncate(self._fd, 0)
                _write_atomically(self._sidecar, msgspec.json.encode(identity))
        except BlockingIOError as error:
            raise UsageError(f"another run is writing {self.partial}") from error
        except OSError as error:
            self.close()
            raise UsageError(f"{self.partial} cannot be written: {error.strerror}; choose another --output") from error

    def write(self, line: bytes) -> None:
        """Append one line, complete when this returns (it survives a kill of this program)."""
        assert self._fd is not None and b"\n" not in line
        rest = memoryview(line + b"\n")
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise LlmrunError(
                f"{self.partial}: {error.strerror}; {self.num_lines:,} lines are complete in it: "
                "put that right, then continue with --resume"
            ) from error
        self.num_lines += 1
        self.num_bytes += len(line) + 1

    def finish(self) -> None:
        """Everything is written: give the file its name."""
        assert self._fd is not None
        try:
            os.fsync(self._fd)
            self.partial.rename(self.path)
            self._sidecar.unlink(missing_ok=True)
        except OSError as error:
            raise LlmrunError(f"{self.partial} is complete, but not {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the file; safe twice."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = None

    def _check_identity(self, identity: Identity) -> None:
        try:
            begun = msgspec.json.decode(self._sidecar.read_bytes(), type=Identity)
        except msgspec.DecodeError as error:
            raise UsageError(f"{self._sidecar} is damaged ({error}); remove it and {self.partial}") from error
        if begun.input_blake3 != identity.input_blake3:
            raise UsageError(f"{self.partial} was begun with another input file (or it has changed); remove it")
        if (begun.model, begun.mdcsum) != (identity.model, identity.mdcsum):
            raise UsageError(f"{self.partial} was begun with model {begun.model}, not with this {identity.model}; "
                             "use that one, or remove it")  # fmt: skip

    def _cut_to_complete_lines(self, identity: Identity) -> None:
        assert self._fd is not None
        kept_lines, kept_bytes, position, num = 0, 0, 0, 0
        with self.partial.open("rb") as file:
            for line in file:
                record = _decode(line)
                if record is None:
                    break
                position, num = position + len(line), num + 1
                if not _is_engine_failure(record):
                    kept_lines, kept_bytes = num, position
        if kept_lines > identity.num_lines:
            raise UsageError(
                f"{self.partial} has {kept_lines:,} lines, the input only {identity.num_lines:,}; remove it"
            )
        os.ftruncate(self._fd, kept_bytes)
        os.lseek(self._fd, kept_bytes, os.SEEK_SET)
        self.num_lines, self.num_bytes = kept_lines, kept_bytes


def _decode(line: bytes) -> dict[str, Any] | None:
    """A complete line's object; None for a torn one."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return record if isinstance(record, dict) else None


def _is_engine_failure(record: dict[str, Any]) -> bool:
    error = record.get("error")
    return isinstance(error, dict) and error.get("type") == ENGINE_FAILURE


def _write_atomically(path: Path, content: bytes) -> None:
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(content)
    draft.rename(path)
