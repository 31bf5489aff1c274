"""Child side: further clients of this EngineCore (--http-workers) ask here for a number among its clients.

The owner's invitation, with that number, is sent to each that connects. While its connection lives, the number is its;
when it ends, so do its requests. Runs in threads; the launcher's side is joiner.py.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from runner.engines.vllm.report import JOIN


class Sharing:
    """Begins with the owner's invitation. `abort` ends all requests of a client; set as soon as there is one."""

    def __init__(self, folder: str, num_clients: int) -> None:
        self.abort: Callable[[int], None] | None = None
        self._path = os.path.join(folder, JOIN)  # noqa: PTH118 (one string for bind and unlink)
        self._free = list(range(num_clients - 1, 0, -1))
        self._lock = threading.Lock()

    def begin(self, line: bytes) -> None:
        """Listen. `line` is the invitation."""
        invitation = json.loads(line)
        if os.path.exists(self._path):  # noqa: PTH110
            os.unlink(self._path)  # noqa: PTH108 (of the start before)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self._path)
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener, invitation), daemon=True).start()

    def _accept(self, listener: socket.socket, invitation: dict[str, Any]) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve, args=(connection, invitation), daemon=True).start()

    def _serve(self, connection: socket.socket, invitation: dict[str, Any]) -> None:
        """One client until it ends. Without a free number the connection is closed, and the client comes again."""
        with self._lock:
            client = self._free.pop() if self._free else None
        if client is None:
            connection.close()
            return
        try:
            connection.sendall(json.dumps({**invitation, "client": client}).encode() + b"\n")
            while connection.recv(4096):
                pass
        except OSError:
            pass
        finally:
            connection.close()
            if self.abort is not None:  # a client that is gone wants no more tokens
                self.abort(client)
            with self._lock:
                self._free.append(client)
