"""CoreJoiner: a further client of an EngineCore that another process of this launcher owns (see Connector).

Asks the worker for an invitation (sharing.py), binds the sockets that go with it, and waits until EngineCore, which has
known their addresses from its start, has found them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from runner.engines.connectors import Connection, ProgressCallback
from runner.engines.link import Link
from runner.engines.vllm.adapters import Adapters
from runner.engines.vllm.link import CoreLink
from runner.engines.vllm.report import Invitation
from runner.engines.vllm.sockets import CoreSockets
from runner.errors import EngineDied

_RETRY_S = 0.05


class CoreJoiner:
    """Waits while the owner starts its EngineCore again."""

    def __init__(self, socket_path: str, name: str, timeout_s: float) -> None:
        self._path = Path(socket_path)
        self._name = name
        self._timeout_s = timeout_s

    @property
    def socket_path(self) -> str | None:
        """See Connector."""
        return str(self._path)

    async def connect(self, on_lost: Callable[[Link, str], None], on_progress: ProgressCallback | None) -> Connection:
        """See Connector."""
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    connection = await self._try(on_lost)
                    if connection is not None:
                        return connection
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise EngineDied(f"the engine {self._name} cannot be reached at {self._path}") from None

    async def _try(self, on_lost: Callable[[Link, str], None]) -> Connection | None:
        invited: asyncio.Future[Invitation | None] = asyncio.get_running_loop().create_future()

        def lost(link: Link, why: str) -> None:
            if is_ready:
                on_lost(link, why)
            elif not invited.done():
                invited.set_result(None)

        def read(line: bytes) -> None:
            invited.set_result(msgspec.json.decode(line, type=Invitation))

        is_ready = False
        link = CoreLink(read, lost)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: link, str(self._path))
        except OSError:
            return None
        try:
            invitation = await invited
            if invitation is None or not await self._open(link, invitation):
                link.abandon("it was not reached")
                return None
        except BaseException:
            link.abandon("cancelled")
            link.release()
            raise
        is_ready = True
        return Connection(link, invitation.info, None)

    async def _open(self, link: CoreLink, invitation: Invitation) -> bool:
        """Whether EngineCore was found at our sockets before the worker was lost."""
        sockets = await CoreSockets.listen(self._path.parent, invitation.number, invitation.client)
        try:
            while not sockets.is_reached:
                if link.broken is not None:
                    sockets.close()
                    return False
                await asyncio.sleep(_RETRY_S)
        except BaseException:
            sockets.close()
            raise
        link.open(invitation.opening, sockets, Adapters(invitation.opening.adapters), invitation.client)
        return True

    def tidy(self) -> None:
        """See Connector: the files are the owner's."""
