"""The socket: which addresses may be bound, binding, and what to say when a port is taken."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket

import psutil

from runner.errors import LlmrunError, UsageError
from runner.options import RunOptions

BACKLOG = 1024
_MANY_FILES = 65536


def check_exposure(options: RunOptions, *, has_keys: bool) -> None:
    """Refuse a public address without a key. Raises UsageError."""
    if not 0 <= options.http_port <= 65535:
        raise UsageError(f"--http-port must be from 0 (any free one) to 65535, got {options.http_port}")
    if has_keys or options.insecure or is_loopback(options.http_host):
        return
    raise UsageError(
        f"--http-host {options.http_host} can be reached by others, and there is no key: anyone could use the model; "
        "add --api-key KEY, or --insecure to allow it"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. Raises UsageError for a name that is no address."""
    if not host:
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return all(ipaddress.ip_address(address[4][0]).is_loopback for address in _resolve(host, 0))


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; `shared` lets other processes bind the same port. Raises LlmrunError or UsageError."""
    return _bind(host, port, shared=shared, listens=True)


def reserve(host: str, port: int) -> socket.socket:
    """Hold a shared port without listening: connections go to the processes that listen."""
    return _bind(host, port, shared=True, listens=False)


def _bind(host: str, port: int, *, shared: bool, listens: bool) -> socket.socket:
    family, kind, protocol, _, address = _resolve(host, port)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if listens:
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise LlmrunError(_bind_message(host, port, error)) from error
    sock.setblocking(False)
    return sock


def raise_file_limit() -> None:
    """As many open connections as this user may have: shells often start programs with 1024."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def url_of(sock: socket.socket, *, tls: bool) -> str:
    """What a client on this machine types."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"


def _resolve(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    try:
        flags = socket.AI_PASSIVE
        found = socket.getaddrinfo(host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--http-host {host!r} is not an address of this machine ({error})") from error
    return found  # type: ignore[return-value]


def _bind_message(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use{_holder(port)}; end that program, or choose another with --http-port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} may not be bound by this user; choose one above 1023 with --http-port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--http-host {host} is not an address of this machine"
    return f"cannot listen on {host}, port {port}: {error.strerror}"


def _holder(port: int) -> str:
    """Who listens there, as far as this user may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
