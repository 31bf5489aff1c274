"""The three standard files of this process are open, whatever the caller closed (`<&-`, `>&-`, `2>&-`).

Else the next file that is opened becomes stdin, stdout or stderr: libuv aborts when it is closed again, and messages
may end up in a socket. Knows nothing of what is read or written.
"""

from __future__ import annotations

import os
import sys


def open_standard_files() -> None:
    """Closed stdin is empty, closed stderr swallows all, writing to closed stdout is an error (as gnulib's stdopen)."""
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, mode)
            assert opened == fd, "the lowest free one, and all below are open"
            os.set_inheritable(fd, True)
    sys.stdin = sys.stdin or os.fdopen(0, "r", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
