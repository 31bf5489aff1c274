"""Endings: the death of any process that an engine started ends this one, at once, with the reason as its last words.

For engines that start ranks of their own (SGLang, vLLM) and would tell of a death after tens of seconds; the launcher
wants to know within seconds, and what is left behind is the guard's (runner.engines.guard). Child side.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from multiprocessing import connection
from typing import Any

from runner.engines.hints import describe_exit

EXIT_CODE = 70
KNOWS_BETTER_S = 0.5
"""A rank that failed may have failed because another node is gone: who watches the nodes (nodes.py) speaks first."""


def leave(reason: str) -> None:
    """End the engine's processes, then this one, so that the reason is the last line of the log. Never returns."""
    _kill(multiprocessing.active_children())
    sys.stdout.flush()
    sys.stderr.write(f"[llmrun] {reason}, which ends the engine\n")
    sys.stderr.flush()
    os._exit(EXIT_CODE)


class Children:
    """The processes that the engine has started, once it is up. `has_nodes`: other machines work with it, so that even
    one that was killed may have been killed by its own kind (SGLang does) because another machine is gone."""

    def __init__(self, *, has_nodes: bool = False) -> None:
        self._has_nodes = has_nodes
        self._children = multiprocessing.active_children()
        self._titles = {child.pid: _title(child) for child in self._children}
        self._is_closing = False
        threading.Thread(target=self._wait, name="llmrun-children", daemon=True).start()

    def _wait(self) -> None:
        """The end of any of them ends this process."""
        by_sentinel: dict[Any, Any] = {child.sentinel: child for child in self._children}
        if not by_sentinel:
            return
        gone = by_sentinel[next(iter(connection.wait(list(by_sentinel))))]
        gone.join(1.0)
        if self._has_nodes or (gone.exitcode or 0) >= 0:
            time.sleep(KNOWS_BETTER_S)
        if not self._is_closing:
            leave(f"{self._titles[gone.pid]} (pid {gone.pid}) is gone: {describe_exit(gone.exitcode)}")

    def kill(self) -> None:
        """SIGKILL to all: they hold nothing that must be saved."""
        self._is_closing = True
        _kill(self._children)


def _kill(children: list[Any]) -> None:
    for child in children:
        child.kill()
    for child in children:
        child.join(1.0)


def _title(child: Any) -> str:
    """What the engine calls it: `sglang::scheduler_TP0`, `VLLM::Worker_TP1`."""
    import psutil

    try:
        return str(psutil.Process(child.pid).cmdline()[0])
    except (psutil.Error, IndexError):
        return str(child.name)
