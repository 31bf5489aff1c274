"""Progress of downloads, on stderr: bars on a terminal, a line a file elsewhere. Knows files and bytes only."""

from __future__ import annotations

import sys
from typing import Any

from runner.console import say


class DownloadBars:
    """A context whose `update` is told of progress; nothing is imported or drawn before the first file."""

    def __init__(self) -> None:
        self._tasks: dict[str, Any] = {}
        self._progress: Any = None

    def __enter__(self) -> DownloadBars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, file: str, done: int, total: int) -> None:
        """Show how far a file is (bytes)."""
        if file not in self._tasks:
            self._tasks[file] = self._add(file, done, total)
        if self._progress is not None:
            self._progress.update(self._tasks[file], completed=done, total=total)

    def _add(self, file: str, done: int, total: int) -> Any:
        if not sys.stderr.isatty():
            is_resumed = f", {_size(done)} of it are here already" if done else ""
            say(f"fetching {file} ({_size(total)}{is_resumed})")
            return None
        if self._progress is None:
            self._progress = _make_progress()
            self._progress.start()
        return self._progress.add_task(file, total=total)


def _make_progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True))


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.3g} {unit}"
