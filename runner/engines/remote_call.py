"""One call of a remote worker that cannot be moved: whoever is asked makes all of the answer, and is left for another
worker only before the first item of it has come. Embeddings and text go this way; token ids have remote.py's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from runner.engines.remote_pool import WorkerPool
from runner.errors import EngineBusy, EngineDied, EngineFailed, LlmrunError, RequestError, UnsupportedField
from runner.net.client import NetClient
from runner.net.planes import Refused, TooLarge, Unreachable
from runner.net.responses import ResponseStream, StreamBroken, StreamRefused
from runner.trace import trace_headers

LOST = (Unreachable, Refused, StreamBroken)
ELSEWHERE = ("busy", "died")
"""Kinds of errors that another worker may not have."""
ERRORS: dict[str, type[LlmrunError]] = {"request": RequestError, "unsupported": UnsupportedField}


class RemoteCall:
    """`items()` is the answer. `is_answered` is the caller's to set: all that it wants has come.

    `field` is the field of the user's request that is too large, if it is; `nobody` says that there is no worker.
    """

    def __init__(self, client: NetClient, pool: WorkerPool, *, field: str, nobody: Callable[[], str]) -> None:
        self.is_answered = False
        self._client, self._pool = client, pool
        self._field, self._nobody = field, nobody
        self._tried: set[int] = set()
        self._trouble: LlmrunError | None = None
        self._has_begun = False

    async def items(self, request_id: str, body: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """Items as they come, to the end of the stream. Raises EngineError, RequestError."""
        while True:
            worker = self._pool.pick((), self._tried)
            if worker is None:
                raise self._trouble or EngineBusy(self._nobody())
            self._pool.enter(worker, 0)
            stream: ResponseStream | None = None
            try:
                headers = trace_headers()
                stream = await self._client.open(worker.instance, request_id, body, headers, streams=worker.streams)
                while items := await stream.take():
                    self._has_begun = True
                    for item in items:
                        yield item
                return
            except (*LOST, StreamRefused) as error:
                kind = error.kind if isinstance(error, StreamRefused) else "died"
                if kind == "died":
                    self._pool.mark_down(worker, str(error))
                self._lost(f"{worker}", error, kind)
                self._tried.add(worker.id)
            except TooLarge as error:
                raise RequestError(str(error), field=self._field) from None
            finally:
                if stream is not None:
                    worker.streams.discard(stream)
                    stream.close(is_answered=self.is_answered)
                self._pool.leave(worker, 0)

    def _lost(self, worker: str, error: Exception, kind: str) -> None:
        """Prepare the next attempt. Raises what the answer ends with when there can be none."""
        if kind not in ELSEWHERE:
            raise ERRORS.get(kind, EngineFailed)(str(error)) from None
        if self._has_begun:
            raise EngineDied(f"{worker} was lost in the middle of its answer: {error}") from None
        self._trouble = EngineBusy(str(error)) if kind == "busy" else EngineDied(f"{worker}: {error}")
