"""One serving process: sockets in, signals, graceful drain, everything closed at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from runner.frontends.http.app import make_app
from runner.frontends.http.request_log import RequestLog
from runner.frontends.http.state import State

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_KEEPALIVE_S = 75.0
_HURRY_S = 2.0


class _ServerLog(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's log, with one line instead of a traceback for a client that sends something other than HTTP."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **more: Any) -> None:
        """What aiohttp calls for every request that it cannot read."""
        if isinstance(exc_info, HttpProcessingError):
            said = " ".join(exc_info.message.split())
            self.warning(f"{msg}: not HTTP as it should be: %s", *args, said[:200])
        else:
            super().exception(msg, *args, exc_info=exc_info, **more)


class Stop:
    """How a server is told to end: once politely, twice at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()

    def ask(self) -> None:
        """Drain; the second time, stop at once; the third time, leave."""
        if self.now.is_set():
            os._exit(1)
        (self.now if self.asked.is_set() else self.asked).set()

    async def drain(self, state: State, timeout_s: float) -> None:
        """Let running answers end, unless asked again."""
        draining = asyncio.ensure_future(state.drain(timeout_s))
        hurrying = asyncio.ensure_future(self.now.wait())
        try:
            await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
            if self.now.is_set():
                state.cut_off()
                # A client that reads nothing may hold its answer's end back: that long and no longer.
                await asyncio.wait({draining}, timeout=_HURRY_S)
            else:
                await draining
        finally:
            draining.cancel()
            hurrying.cancel()
            await asyncio.gather(draining, hurrying, return_exceptions=True)


def handle_signals(stop: Stop) -> None:
    """SIGINT and SIGTERM ask to stop, also during the closing that follows."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        with contextlib.suppress(NotImplementedError, ValueError):
            loop.add_signal_handler(number, stop.ask)


async def serve(
    state: State,
    sock: socket.socket,
    stop: Stop,
    *,
    tls: ssl.SSLContext | None = None,
    drain_timeout_s: float = 30.0,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until `stop` is asked, then drain. Cancelling it closes at once. Closes the socket."""
    runner = web.AppRunner(
        make_app(state),
        handler_cancellation=True,
        access_log=None,
        logger=_ServerLog(logging.getLogger("aiohttp.server")),
        keepalive_timeout=_KEEPALIVE_S,
        shutdown_timeout=1.0,
    )
    async with RequestLog() as log:
        state.log = log.write
        pinging = asyncio.create_task(state.pinger.run())
        try:
            await runner.setup()
            site = web.SockSite(runner, sock, ssl_context=tls)
            await site.start()
            on_ready()
            await stop.asked.wait()
            state.is_draining = True
            await site.stop()
            await stop.drain(state, drain_timeout_s)
        finally:
            state.cut_off()
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)
            await runner.cleanup()
            sock.close()
