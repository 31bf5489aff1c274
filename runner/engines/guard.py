"""No orphans: a child dies with its launcher, and what the child itself started dies with the child.

Linux: PR_SET_PDEATHSIG kills the child the instant its launcher is gone. A small forked guard process, in the child's
process group, gets a signal when the child is gone (killed, crashed or ended) and then kills the rest of the group.
Elsewhere the guard polls its parent's id.

As a program (`python guard.py PID COMMAND...`) it becomes COMMAND, tied to process PID in the same way: for
programs that are not ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.5


def watch(launcher_pid: int, socket_path: Path) -> None:
    """Call first thing in a child that leads its own process group, before any thread runs. Forks the guard."""
    _set_death_signal(signal.SIGKILL)
    if os.getppid() != launcher_pid:
        os._exit(71)
    child_pid = os.getpid()
    if os.fork() == 0:
        _guard(child_pid, launcher_pid, socket_path)


def _set_death_signal(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def _guard(child_pid: int, launcher_pid: int, socket_path: Path) -> None:
    """The guard process: wait for the end of the child, then kill its group, which includes this process."""
    try:
        os.closerange(3, 4096)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _wait_for_end(child_pid)
        if not _is_alive(launcher_pid):
            _remove(socket_path)
        os.killpg(child_pid, signal.SIGKILL)
    finally:
        os._exit(0)


def _wait_for_end(child_pid: int) -> None:
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        _set_death_signal(signal.SIGUSR2)
        while os.getppid() == child_pid:
            signal.sigtimedwait({signal.SIGUSR2}, 60)
        return
    while os.getppid() == child_pid:
        time.sleep(_POLL_S)


def _is_alive(pid: int) -> bool:
    """A zombie is not alive."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except (PermissionError, FileNotFoundError):  # another user's, or a system without /proc
        return True
    return state not in "ZX"


def _remove(socket_path: Path) -> None:
    """The launcher is gone and cannot tidy up; the folder is private to it and this child."""
    with contextlib.suppress(OSError):
        for path in socket_path.parent.iterdir():
            path.unlink()
        socket_path.parent.rmdir()


def _main(launcher_pid: int, command: list[str]) -> None:
    watch(launcher_pid, Path("/nonexistent/llmrun/none"))
    try:
        os.execvp(command[0], command)
    except OSError as problem:
        sys.stderr.write(f"{command[0]}: {problem.strerror}\n")
        os._exit(127)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
