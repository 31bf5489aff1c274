"""One connection to NATS: made or refused in seconds, encrypted where it was asked for, and back by itself for ever.

Owns what nats-py leaves open: it would try a first connection for ever, go on in plain text where tls:// was asked for
and the server has no TLS, and give up for good when the server refuses it later. Knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from nats import errors
from nats.aio.client import Client

from runner.errors import EngineStartFailed, UsageError
from runner.net.credentials import NATS_TLS, NatsLogin, bare_url, read_nats_login, tls_trouble

_CONNECT_S = 10.0
_STEP_S = 3
"""Of each: the connection, the server's first words, TLS, the answer to ours."""
_CLOSE_S = 2.0
_RETRY_S = 2.0


class _Refused(errors.Error):
    """The server is not as we want it."""


class _Connection(Client):
    """`must_encrypt`: credentials and data go over TLS, or not at all."""

    def __init__(self, *, must_encrypt: bool) -> None:
        super().__init__()
        self._must_encrypt = must_encrypt

    async def close(self) -> None:
        """Never raises: nats-py passes on the cancelling of its own task where it was just coming back."""
        closing = asyncio.create_task(super().close())
        await asyncio.wait({closing}, timeout=_CLOSE_S)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """The server's first words, before we say ours."""
        if initial_connection and self._must_encrypt:
            if not info.get("tls_required") and not info.get("tls_available"):
                raise _Refused("it has no TLS, and we were told to use it; nats://… is without")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def _process_err(self, err_msg: str) -> None:
        """A user that is refused now (a new password, a server that reloads) may be taken again later."""
        if "permissions violation" in err_msg.lower():
            await super()._process_err(err_msg)
        else:
            await self._process_op_err(errors.Error(f"nats: {err_msg}"))


async def connect_nats(url: str, login: NatsLogin | None = None) -> Client:
    """A connection. `url` may be several, with commas; `login` is read from the environment where it is not given.

    Raises EngineStartFailed, UsageError.
    """
    login = read_nats_login() if login is None else login
    if not login.source and bare_url(url) != url:
        login = dataclasses.replace(login, source="the user in NATS_SERVER")
    client = _Connection(must_encrypt="tls://" in url or "wss://" in url or login.tls is not None)
    try:
        why = await _connect(client, url, login)
    except BaseException:  # cancelled: leave no socket behind
        await client.close()
        raise
    if why is not None:
        await client.close()
        raise EngineStartFailed(f"NATS at {bare_url(url)} {_reason(why, login)}", hint=_hint(why, login))
    client.options["max_reconnect_attempts"] = -1
    return client


async def _connect(client: Client, url: str, login: NatsLogin) -> Exception | None:
    """Why there is no connection, or None. What trying again does not mend ends it at once."""
    heard: list[Exception] = []
    is_hopeless = asyncio.Event()

    async def hear(error: Exception) -> None:
        if not is_hopeless.is_set():  # once connected, requests and subscriptions say themselves what is wrong
            heard[:] = [error]
        if _is_refusal(error) or isinstance(error, _Refused) or tls_trouble(error, NATS_TLS) is not None:
            is_hopeless.set()

    connecting = asyncio.create_task(
        client.connect(
            [part.strip() for part in url.split(",")],
            error_cb=hear,
            connect_timeout=_STEP_S,
            reconnect_time_wait=0.2,  # type: ignore[arg-type]
            max_reconnect_attempts=1,
            ping_interval=2,
            max_outstanding_pings=2,
            tls=login.tls,
            **login.arguments,
        )
    )
    hoping = asyncio.create_task(is_hopeless.wait())
    try:
        await asyncio.wait({connecting, hoping}, timeout=_CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_connected = connecting.done()
        for task in (connecting, hoping):
            task.cancel()
        (failure, _) = await asyncio.gather(connecting, hoping, return_exceptions=True)
    if is_connected and failure is None:
        return None
    if heard:
        return heard[-1]
    return failure if isinstance(failure, Exception) else TimeoutError(f"no answer within {_CONNECT_S:.0f} s")


def _reason(error: Exception, login: NatsLogin) -> str:
    if _is_refusal(error):
        return f"refuses {login.source}" if login.source else "wants to know who we are"
    trouble = tls_trouble(error, NATS_TLS)
    if trouble is not None or isinstance(error, _Refused):
        return f"cannot be used: {trouble or error}"
    return f"cannot be reached: {str(error) or repr(error)}"


def _hint(error: Exception, login: NatsLogin) -> str:
    if isinstance(error, _Refused) or tls_trouble(error, NATS_TLS):
        return ""
    if not _is_refusal(error):
        return "llmrun up starts one; or NATS_SERVER=URL"
    if login.source:
        return f"compare {login.source} with the server's configuration"
    return "NATS_AUTH_USERNAME and NATS_AUTH_PASSWORD (or _TOKEN, _NKEY, _CREDENTIALS_FILE) say it"


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, errors.AuthorizationError) or "authorization violation" in str(error).lower()


async def connect_when_there(url: str, say: Callable[[Exception], None]) -> Client:
    """As connect_nats, however long it takes; `say` hears of each failure."""
    while True:
        try:
            return await connect_nats(url)
        except (EngineStartFailed, UsageError) as error:
            say(error)
            await asyncio.sleep(_RETRY_S)
