"""Logs go to stderr, at the level of -v."""

from __future__ import annotations

import contextlib
import logging
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


def test_the_hubs_library_says_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("huggingface_hub.utils")
    log.set_up(0)
    logger = logging.getLogger("huggingface_hub.utils._http")
    library = logging.getLogger("huggingface_hub")
    own = [handler for handler in library.handlers if isinstance(handler, logging.StreamHandler)]
    with contextlib.ExitStack() as undo:
        for handler in own:  # it took stderr when it was imported
            undo.callback(handler.setStream, handler.setStream(sys.stderr))
        logger.warning("Retrying in 1s")
    assert capsys.readouterr().err.count("Retrying in 1s") == 1


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
