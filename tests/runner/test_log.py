"""Logs go to stderr, at the level of -v."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from runner import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


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
