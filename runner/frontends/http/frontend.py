"""HttpFrontend: in=http. Checks the options, binds the port, and serves from one process or several."""

from __future__ import annotations

import socket
import sys

from runner.catalog import Catalog
from runner.errors import UsageError
from runner.frontends.base import FrontendSpec
from runner.frontends.http.auth import load_keys
from runner.frontends.http.listen import bind, check_exposure, raise_file_limit, url_of
from runner.frontends.http.server import Stop, handle_signals, serve
from runner.frontends.http.state import State
from runner.frontends.http.tls import load_tls
from runner.openai_requests import request_defaults
from runner.options import RunOptions


class HttpFrontend:
    """Serves the OpenAI API. Made from wrong options it raises UsageError, before any model is loaded."""

    starts_without_models = True
    """With out=dyn: requests hear what is missing until there is one."""

    def __init__(self, spec: FrontendSpec) -> None:
        self._options: RunOptions = spec.options or RunOptions()
        if spec.argument:
            raise UsageError(f"in=http takes no argument, got {spec.argument!r}; use --http-host and --http-port")
        if self._options.http_workers < 1:
            raise UsageError(f"--http-workers must be at least 1, got {self._options.http_workers}")
        self._keys = load_keys(self._options)
        self._tls = load_tls(self._options)
        check_exposure(self._options, has_keys=bool(self._keys))
        request_defaults(self._options)

    async def run(self, catalog: Catalog) -> int:
        """Serve until SIGINT or SIGTERM. Raises LlmrunError when the port cannot be bound."""
        raise_file_limit()
        stop = Stop()
        handle_signals(stop)
        if self._options.http_workers > 1:
            await self._run_workers(catalog, stop)
        else:
            await self._run_alone(catalog, stop)
        return 0

    async def _run_alone(self, catalog: Catalog, stop: Stop) -> None:
        options = self._options
        state = State(catalog, options, keys=self._keys)
        sock = bind(options.http_host, options.http_port)
        await serve(
            state,
            sock,
            stop,
            tls=self._tls,
            drain_timeout_s=options.drain_timeout_s,
            on_ready=lambda: self._greet(catalog, sock),
        )

    async def _run_workers(self, catalog: Catalog, stop: Stop) -> None:
        from runner.frontends.http.workers import serve_workers

        await serve_workers(catalog, self._options, stop, on_ready=lambda sock: self._greet(catalog, sock))

    def _greet(self, catalog: Catalog, sock: socket.socket) -> None:
        names = ", ".join(catalog.names()) or "no model yet"
        sys.stderr.write(f"Serving {names} on {url_of(sock, tls=self._tls is not None)}/v1 (Ctrl-C stops)\n")
        sys.stderr.flush()
