"""The answers of a worker: requests off the request plane, through the engine, out on the response plane.

Owns what happens to one request, and to all when the worker drains. What stands in a request and in its answer is
endpoint_answers.py's. Knows nothing of discovery.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any, NamedTuple

import msgspec

from runner.errors import EngineBusy, EngineDied, LlmrunError, RequestError, UnsupportedField
from runner.frontends.endpoint_answers import Answers
from runner.net.answers import ResponseWriter, open_response
from runner.net.codecs import DECODERS, decode_item
from runner.net.frames import FrameError, decode_frame
from runner.net.messages import DEADLINE, is_late
from runner.net.planes import OWN, PING
from runner.net.responses import Kind
from runner.trace import set_trace, trace_headers

logger = logging.getLogger(__name__)

_KINDS: tuple[tuple[type[Exception], Kind], ...] = (
    (UnsupportedField, "unsupported"),
    (RequestError, "request"),
    (EngineBusy, "busy"),
    (EngineDied, "died"),
    (ValueError, "request"),
)


class _Call(NamedTuple):
    """One request, as it came."""

    id: str
    codec: str
    info: dict[str, Any]
    body: bytes


class EndpointStreams:
    """All answers that run. While `refusal` is set, llmrun's requests are refused with it before they begin."""

    def __init__(self, answers: Answers) -> None:
        self.refusal: str | None = None
        self._answers = answers
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[ResponseWriter] = set()
        self._ids: set[str] = set()
        self._is_ending = False

    @property
    def num_open(self) -> int:
        """Answers that are not finished."""
        return len(self._open)

    def take(self, frame: bytes, headers: dict[str, str]) -> str | None:
        """See planes.Taken."""
        if PING in headers:
            return self.refusal
        if is_late(headers.get(DEADLINE)):
            return "the request came later than it was wanted (do the clocks of the two machines agree?)"
        if self.refusal is not None and OWN in headers:
            return self.refusal
        task = asyncio.create_task(self._answer(frame, headers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return None

    async def _answer(self, frame: bytes, headers: dict[str, str]) -> None:
        """One request from its bytes to its end; the task's exceptions all end here."""
        task = asyncio.current_task()
        assert task is not None
        set_trace(headers)
        try:
            call = self._unique(_read(frame))
            writer = await open_response(call.info, call.codec, on_stop=task.cancel)
        except (FrameError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("a request cannot be answered: %r", error)
            return
        self._open.add(writer)
        self._ids.add(call.id)
        try:
            await self._serve(call, writer)
            self._open.discard(writer)
            await writer.close()
        except asyncio.CancelledError:
            if self._is_ending and not writer.stopped.is_set():
                await writer.fail("the worker is shutting down", "died")
        except Exception as error:  # the answer ends here, whatever it is
            logger.exception("request %s failed", call.id)
            await writer.fail(f"internal error of the worker: {type(error).__name__}")
        finally:
            self._ids.discard(call.id)
            self._open.discard(writer)
            await writer.close(linger=False)

    def _unique(self, call: _Call) -> _Call:
        """The engine knows requests by their ids; a stranger may send one twice."""
        return call._replace(id=f"{call.id}-{secrets.token_hex(6)}") if call.id in self._ids else call

    async def _serve(self, call: _Call, writer: ResponseWriter) -> None:
        try:
            request = self._request(call)
        except (RequestError, EngineDied, ValueError) as error:
            await writer.accept(str(error), _kind(error))
            return
        await writer.accept()
        logger.info("request %s: %s%s", call.id, self._answers.describe(request), _trace())
        try:
            await self._answers.answer(request, writer)
        except LlmrunError as error:
            await writer.fail(str(error), _kind(error))

    def _request(self, call: _Call) -> Any:
        """Raises RequestError, EngineDied, ValueError."""
        if self.refusal is not None:
            raise EngineDied(self.refusal)
        return self._answers.read(decode_item(call.codec, call.body), call.id)

    async def drain(self, timeout_s: float) -> None:
        """Wait for the answers that run, then end what is left with an error."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        await self.end()

    async def end(self) -> None:
        """End all answers now."""
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)


def _read(frame: bytes) -> _Call:
    """Raises FrameError, ValueError, KeyError, TypeError, AttributeError."""
    header, body = decode_frame(frame)
    control: Any = decode_item("json", header)
    codec = control.get("payload_codec") or "json"
    if codec not in DECODERS:
        raise ValueError(f"codec {codec!r} is not known here")
    info = msgspec.json.decode(control["connection_info"]["info"], type=dict[str, Any])
    return _Call(str(control.get("id") or info.get("context") or ""), codec, info, body)


def _trace() -> str:
    return "".join(f", {name} {value}" for name, value in trace_headers().items())


def _kind(error: Exception) -> Kind:
    return next((kind for cls, kind in _KINDS if isinstance(error, cls)), "failed")
