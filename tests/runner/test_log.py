"""Logs go to stderr, at the level of -v."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from runner import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.getLogger("huggingface_hub").propagate = True
    root.handlers[:] = handlers
    root.setLevel(level)


def test_the_hubs_library_says_each_line_once() -> None:
    """In a process of its own: the library takes stderr once, when it is imported, and here pytest is there first."""
    pytest.importorskip("huggingface_hub.utils")
    program = (
        "from runner import log; log.set_up(0); from huggingface_hub.utils.logging import get_logger; "
        "get_logger('huggingface_hub.utils._http').warning('Retrying in 1s')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("Retrying in 1s") == 1


@pytest.mark.parametrize(
    ("verbose", "expected"),
    [(0, ["ours warning", "theirs warning"]), (1, ["ours warning", "ours info", "theirs warning"]),
     (2, ["ours warning", "ours info", "ours debug", "theirs warning", "theirs info"])],
)  # fmt: skip
def test_levels(verbose: int, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(verbose)
    for name, logger in (("ours", logging.getLogger("runner.x")), ("theirs", logging.getLogger("urllib3.pool"))):
        for level in ("warning", "info", "debug"):
            getattr(logger, level)(f"{name} {level}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(": ", 1)[1] for line in captured.err.splitlines()] == expected
