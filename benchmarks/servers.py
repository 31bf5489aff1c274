"""Starting servers, ours and rivals', and ending them with everything they started. Knows no measurement."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.settings import Settings

START_LIMIT_S = 180.0


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        """Its TCP port."""
        return int(self.url.rsplit(":", 1)[1])


def free_port() -> int:
    """A TCP port that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def serve(
    name: str, command: Sequence[str], port: int, *, ready: str = "/health", env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a server in a process group of its own, wait until `ready` answers 200, and kill the group at the end.

    Raises RuntimeError with the last lines of its log if it does not start.
    """
    with tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
    server = Server(name, f"http://127.0.0.1:{port}", process, Path(log.name))
    try:
        _wait(server, ready)
        yield server
    finally:
        stop(server)
        server.log.unlink(missing_ok=True)


def stop(server: Server, grace_s: float = 20.0) -> None:
    """SIGTERM, then SIGKILL to the whole group. Safe twice."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        server.process.terminate()
        server.process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


def status(port: int, path: str, timeout_s: float = 5.0) -> int | None:
    """HTTP status of a GET, None if nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _wait(server: Server, path: str) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while status(server.port, path) != 200:
        if server.process.poll() is not None or time.monotonic() > deadline:
            tail = server.log.read_text(errors="replace").splitlines()[-15:]
            state = f"exit code {server.process.poll()}" if server.process.poll() is not None else "too slow"
            raise RuntimeError(f"{server.name} did not start ({state}):\n" + "\n".join(tail))
        time.sleep(0.05)


@contextlib.contextmanager
def llmrun(settings: Settings, model: Path | str, *words: str, out: str = "llamacpp") -> Iterator[Server]:
    """Our server by the real command."""
    port = free_port()
    command = [*settings.command, "in=http", f"out={out}", "--model-path", str(model), "--http-port", str(port), *words]
    with serve("llmrun", command, port) as server:
        yield server


@contextlib.contextmanager
def llama_server(settings: Settings, model: Path, *, context: int, parallel: int) -> Iterator[Server]:
    """llama.cpp's own C++ server: `context` tokens for each of `parallel` slots."""
    port, binary = free_port(), settings.rivals.llama_server
    assert binary is not None
    command = [binary, "-m", str(model), "-c", str(context * parallel), "--parallel", str(parallel)]
    command += ["-t", str(settings.threads), "-tb", str(settings.threads), "--port", str(port), "--no-webui"]
    with serve("llama-server", command, port) as server:
        yield server


@contextlib.contextmanager
def llama_cpp_server(settings: Settings, model: Path, *, context: int) -> Iterator[Server]:
    """`python -m llama_cpp.server`; it answers one request at a time."""
    port, python = free_port(), settings.rivals.llama_cpp_python
    assert python is not None
    site = settings.rivals.llama_cpp_python_site
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--n_ctx", str(context), "--port", str(port)]
    command += ["--n_threads", str(settings.threads), "--n_threads_batch", str(settings.threads)]
    command += ["--interrupt_requests", "false", "--host", "127.0.0.1"]
    env = {"PYTHONPATH": site} if site else {}
    with serve("llama_cpp.server", command, port, ready="/v1/models", env=env) as server:
        yield server
