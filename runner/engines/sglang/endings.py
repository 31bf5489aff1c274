"""Endings: the death of any of SGLang's processes ends this one, at once, with the reason as its last words.

SGLang's own way is a signal to its parent, half a minute of diagnostics and a kill of the whole tree; the launcher
wants to know within seconds, and what is left behind is the guard's (runner.engines.guard).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from multiprocessing import connection
from typing import Any

from runner.engines.hints import describe_exit

EXIT_CODE = 70


def leave(reason: str) -> None:
    """End this process; never returns."""
    sys.stdout.flush()
    sys.stderr.write(f"sglang: {reason}, which ends the engine\n")
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def on_sigquit(signum: int = 0, frame: Any = None) -> None:
    """For SGLang's `custom_sigquit_handler`: a child process of it has failed and says so."""
    leave("one of SGLang's processes failed (its words are above)")


def watch_children() -> None:
    """From now on the end of any process that SGLang started ends this one."""
    children = multiprocessing.active_children()
    threading.Thread(target=_wait, args=(children,), name="sglang-children", daemon=True).start()


def _wait(children: list[Any]) -> None:
    by_sentinel = {child.sentinel: child for child in children}
    if not by_sentinel:
        return
    gone = by_sentinel[next(iter(connection.wait(list(by_sentinel))))]
    gone.join(1.0)
    leave(f"its process {gone.name} (pid {gone.pid}) is gone: {describe_exit(gone.exitcode)}")


def kill_children() -> None:
    """SIGKILL to what SGLang started: it holds nothing that must be saved."""
    for child in multiprocessing.active_children():
        child.kill()
    for child in multiprocessing.active_children():
        child.join(1.0)
