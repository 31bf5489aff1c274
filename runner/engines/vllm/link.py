"""CoreLink: the launcher's end of one EngineCore, and the streams on it. Streams, merging and waking are Link's.

Bytes from the worker's own socket are lines of JSON and then, at its death, the end of file; tokens come by ZeroMQ.
Its protocol is spoken on the loop's own connections (zmtp.py): no thread of libzmq stands between.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import sys
from array import array
from collections.abc import Callable
from typing import Any

import msgspec

from runner.engines import frames
from runner.engines.frames import ErrorReply, Heartbeat
from runner.engines.link import Link
from runner.engines.vllm import wire
from runner.engines.vllm.adapters import Adapters
from runner.engines.vllm.limits import Limits, check, check_prompt
from runner.engines.vllm.report import Opening
from runner.engines.vllm.sampling import sampling_map
from runner.engines.vllm.settings import Adapter
from runner.engines.vllm.sockets import CoreGone, CoreSockets
from runner.errors import EngineBusy, EngineDied, EngineError, EngineFailed, RequestError
from runner.types import ChatRequest, EmbedRequest, EmbedResult, FinishReason, TokenDelta, TokenRequest

STATS_METHOD, PING_METHOD = "llmrun_stats", "is_sleeping"
"""The guard's own; and one of EngineCore's that changes nothing, where there is no guard."""
_PING_S = 1.0
_LAST_WORDS_S = 0.05
"""ENGINE_CORE_DEAD comes by another connection than the one whose end is seen."""
_REASONS: dict[int, FinishReason] = {wire.STOP: "stop", wire.LENGTH: "length", wire.REPETITION: "stop"}


class CoreLink(Link):
    """Made before the worker starts or is joined; `open` makes it ready for requests. `on_line` gets the line."""

    def __init__(self, on_line: Callable[[bytes], None], on_lost: Callable[[Link, str], None]) -> None:
        super().__init__(lambda kind, payload: None, on_lost)
        self._on_line = on_line
        self._line = bytearray()
        self.sockets: CoreSockets | None = None
        self._wire: wire.Wire | None = None
        self._adapters = Adapters(())
        self._using: dict[int, Adapter] = {}
        """By the keys of streams."""
        self._leaving: set[Adapter] = set()
        """Unloaded, and still in use."""
        self._max_open: int | None = None
        self._max_running = 1
        self._limits: Limits | None = None
        self._core_numbers: dict[str, float] = {}
        self._vectors: dict[str, asyncio.Future[array[float]]] = {}
        self._num_cached = 0
        self._num_prompt = 0
        self._ping: asyncio.TimerHandle | None = None

    # asyncio.Protocol: the worker's own socket

    def data_received(self, data: bytes) -> None:
        """Lines of the worker."""
        self._line += data
        while self._wire is None and b"\n" in self._line:
            line, _, self._line = self._line.partition(b"\n")
            try:
                self._on_line(bytes(line))
            except msgspec.MsgspecError as error:
                self.abandon(f"its report cannot be read ({error})")

    def tell(self, line: bytes) -> None:
        """Send a line to the worker."""
        if self._transport is not None:
            self._transport.write(line)

    # life

    def open(self, opening: Opening, sockets: CoreSockets, adapters: Adapters, client: int = 0) -> None:
        """EngineCore is ready: read its steps from now on. `adapters` are those that it has or will be given."""
        self.sockets = sockets
        self._wire = wire.Wire(opening.report, client)
        self._adapters = adapters
        self._max_running = opening.max_running
        self._max_open = opening.max_open
        self._limits = opening.limits
        if client:  # ids must differ from those of the other clients, and of one that was client before
            self._last_key = (client << 40) + secrets.randbits(38)
        sockets.watch(self._take_message, self._notice_end)
        self._beat()

    def _beat(self) -> None:
        """Ask for numbers once a second; each answer is a sign of life."""
        if self.broken is None:
            method = STATS_METHOD if self._limits is None else PING_METHOD
            self._send_utility(0, method, ())
            self._ping = self._loop.call_later(_PING_S, self._beat)

    def _notice_end(self) -> None:
        """EngineCore is gone, while its parent may live for seconds (headless)."""
        if self._limits is not None:
            self._loop.call_later(_LAST_WORDS_S, self.abandon, "EngineCore closed its connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """The worker is gone."""
        super().connection_lost(exc)
        self.release()

    def fail(self, message: str, kind: type[EngineError] = EngineDied) -> None:
        """As Link.fail, and for embeddings."""
        super().fail(message, kind)
        for future in self._vectors.values():
            if not future.done():
                future.set_exception(kind(message))
        self.release()

    def release(self) -> None:
        """Close the ZeroMQ sockets; safe twice."""
        if self._ping is not None:
            self._ping.cancel()
        if self.sockets is not None:
            self.sockets.close()

    # receiving

    def _take_message(self, message: list[bytes]) -> None:
        if self.broken is not None:
            return
        if message[0] == wire.DEAD:
            self.abandon("vLLM's EngineCore died (an error inside it; its log says which)")
            return
        assert self._wire is not None
        try:
            self._take(self._wire.decode(message), message)
        except (msgspec.MsgspecError, wire.WireMismatch) as error:
            self.abandon(f"a step of vLLM cannot be read ({error}); this vLLM speaks another protocol")

    def _take(self, step: Any, message: list[bytes]) -> None:
        """One message: all streams of a step."""
        deltas: list[tuple[int, TokenDelta]] = []
        for output in step.outputs:
            if output.pooling_output is not None:
                self._set_vector(output, message)
            elif output.finish_reason in (wire.ABORTED, wire.ERROR):
                self._end_badly(output)
            else:
                deltas.append((int(output.request_id), self._delta(output, message)))
        if deltas:
            self.push_tokens(deltas)
        if step.scheduler_stats is not None:
            self._core_numbers = _numbers_of(step.scheduler_stats)
        if step.utility_output is not None:
            self._take_utility(*step.utility_output)

    def _delta(self, output: Any, message: list[bytes]) -> TokenDelta:
        ids = output.new_token_ids
        fields = output.new_logprobs
        stats = output.prefill_stats
        reason = output.finish_reason
        if fields is None and stats is None and reason is None:
            return TokenDelta(ids)  # almost every one
        logprobs = None if fields is None else wire.read_logprobs(fields, message)
        stop_id = output.stop_reason if isinstance(output.stop_reason, int) else None
        if reason == wire.STOP and stop_id is not None and ids and ids[-1] == stop_id:
            del ids[-1]
            if logprobs is not None:
                del logprobs[len(ids) :]
        cached = stats.get("num_cached_tokens", 0) if isinstance(stats, dict) else None
        if isinstance(stats, dict):
            self._num_cached += cached or 0
            self._num_prompt += stats.get("num_prompt_tokens", 0)
        finish = None if reason is None else _REASONS.get(reason, "stop")
        return TokenDelta(ids, finish, logprobs, stop_id, cached)

    def _end_badly(self, output: Any) -> None:
        why = output.stop_reason
        error: RequestError | EngineFailed
        if isinstance(why, str) and why:
            error = RequestError(f"vLLM refuses this request: {why}")
        else:
            error = EngineFailed("vLLM gave this request up; its log says why")
        if output.request_id in self._vectors:
            future = self._vectors[output.request_id]
            if not future.done():
                future.set_exception(error)
            return
        self.end_with_error(ErrorReply(int(output.request_id), type(error).__name__, str(error)))

    def _set_vector(self, output: Any, message: list[bytes]) -> None:
        future = self._vectors.get(output.request_id)
        if future is not None and not future.done():
            future.set_result(wire.read_array(output.pooling_output, message))

    def _take_utility(self, call_id: int, failure: str | None = None, result: Any = None) -> None:
        self.num_beats += 1
        value = result[1] if result else None
        if call_id == 0:
            self.last_beat = Heartbeat(self._numbers(value))
            return
        reply = self.replies.get(call_id)
        if reply is None or reply.done():
            return
        if failure is not None:
            reply.set_exception(EngineFailed(failure))
        else:
            reply.set_result(value)

    def _numbers(self, core: Any) -> dict[str, float]:
        numbers = self._core_numbers
        if isinstance(core, dict):  # else the answer to a ping
            numbers = {name: float(value) for name, value in core.items()}
        return {
            **numbers,
            "prefix_cached_tokens": float(self._num_cached),
            "prompt_tokens": float(self._num_prompt),
        }

    # sending

    def send(self, kind: int, payload: Any) -> None:
        """CLOSE: our end of the worker's socket is shut, which it takes as the wish to leave."""
        if kind == frames.CLOSE and self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()

    def _send(self, kind: bytes, body: bytes) -> None:
        if self.broken is None and self.sockets is not None:
            try:
                self.sockets.send(kind, body)
            except CoreGone as error:
                self.abandon(f"vLLM's EngineCore cannot be reached ({error})")

    def _send_utility(self, call_id: int, method: str, arguments: tuple[Any, ...]) -> None:
        assert self._wire is not None
        self._send(wire.UTILITY, self._wire.utility(call_id, method, arguments))

    async def submit(self, kind: int, key: int, request: TokenRequest | ChatRequest | EmbedRequest) -> None:
        """See Link."""
        assert isinstance(request, TokenRequest) and self._wire is not None
        if self._max_open is not None and len(self.streams) > self._max_open:
            raise EngineBusy(
                f"the engine is full: {self._max_running} requests run and {self._max_open - self._max_running} wait "
                f"(--max-queue); try again in a second"
            )
        if self._limits is not None:
            check(request, self._limits)
        fields: dict[str, Any] = {"sampling_params": sampling_map(request, is_guarded=self._limits is None)}
        if request.adapter is not None:
            adapter = self._using[key] = self._adapters.find(request.adapter)
            fields["lora_request"] = self._wire.lora(adapter)
        try:
            body = self._wire.add(str(key), request.token_ids, **fields)
        except (TypeError, ValueError, OverflowError) as error:
            raise RequestError(f"the request cannot be sent to vLLM: {error}") from error
        self._send(wire.ADD, body)

    def leave(self, key: int, is_over: bool) -> None:
        """See Link."""
        del self.streams[key]
        if not is_over and self.broken is None and self._wire is not None:
            self._send(wire.ABORT, self._wire.abort(str(key)))
        adapter = self._using.pop(key, None)
        if adapter is not None and adapter in self._leaving and adapter not in self._using.values():
            self._leaving.discard(adapter)
            self._forget(adapter)

    async def call(self, method: str, *arguments: Any) -> Any:
        """One of EngineCore's utility methods. Raises EngineFailed with its message."""
        key = self.next_key()
        reply = self.replies[key] = self._loop.create_future()
        try:
            self._send_utility(key, method, arguments)
            return await reply
        finally:
            del self.replies[key]

    async def load_adapter(self, name: str, path: str, *, replace: bool = False) -> list[str]:
        """See Link. The one that it replaces stays with the requests that have it."""
        if not self._adapters.may_grow:
            return await super().load_adapter(name, path, replace=replace)
        async with self._adapters.lock:
            adapter = await self._adapters.admit(name, path, replace=replace, num_leaving=len(self._leaving))
            await self.add(adapter)
            old = self._adapters.put(adapter)
            if old is not None:
                self._retire(old)
            return self._adapters.names()

    async def unload_adapter(self, name: str) -> list[str]:
        """See Link."""
        if not self._adapters.may_grow:
            return await super().unload_adapter(name)
        async with self._adapters.lock:
            adapter = self._adapters.find(name, "lora_name")
            self._adapters.drop(name)
            self._retire(adapter)
            return self._adapters.names()

    async def add(self, adapter: Adapter) -> None:
        """Have EngineCore load it. Raises RequestError; nothing of it is left there then."""
        assert self._wire is not None
        try:
            await self.call("add_lora", self._wire.lora(adapter))
        except EngineFailed as error:
            self._forget(adapter)
            raise RequestError(f"vLLM cannot load the adapter in {adapter.path}: {error}", field="lora_path") from error
        except asyncio.CancelledError:
            self._forget(adapter)
            raise

    def _retire(self, adapter: Adapter) -> None:
        """Forget it, now or when the last request that has it ends."""
        if adapter in self._using.values():
            self._leaving.add(adapter)
        else:
            self._forget(adapter)

    def _forget(self, adapter: Adapter) -> None:
        """EngineCore does things in the order in which they are sent, so nobody waits for this."""
        if self.broken is None:
            self._send_utility(self.next_key(), "remove_lora", (adapter.id,))

    async def stats(self, timeout_s: float = 1.0) -> dict[str, float]:
        """See Link."""
        try:
            method = STATS_METHOD if self._limits is None else PING_METHOD
            return self._numbers(await asyncio.wait_for(self.call(method), timeout_s))
        except TimeoutError:
            return self.last_beat.stats

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """See Link."""
        for ids in request.inputs if self._limits is not None else ():
            check_prompt(ids, self._limits)
        vectors = await asyncio.gather(*[self._embed(ids) for ids in request.inputs])
        return EmbedResult(vectors=vectors, prompt_tokens=sum(len(ids) for ids in request.inputs))

    async def _embed(self, token_ids: list[int]) -> bytes:
        assert self._wire is not None
        key = str(self.next_key())
        future = self._vectors[key] = self._loop.create_future()
        is_over = False
        try:
            self._send(wire.ADD, self._wire.add(key, token_ids, pooling_params=self._wire.embed()))
            vector = await future
            is_over = True
        finally:
            del self._vectors[key]
            if not is_over and self.broken is None:
                self._send(wire.ABORT, self._wire.abort(key))
        return _normalised(vector)


def _numbers_of(stats: Any) -> dict[str, float]:
    """EngineCore's SchedulerStats, which it sends where it keeps statistics."""
    if not isinstance(stats, dict):
        return {}
    names = {"num_running_reqs": "num_running", "num_waiting_reqs": "num_waiting", "kv_cache_usage": "kv_used_share"}
    return {ours: float(stats[theirs]) for theirs, ours in names.items() if isinstance(stats.get(theirs), int | float)}


def _normalised(vector: array[float]) -> bytes:
    """Float32, little-endian, of length 1."""
    length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
    unit = array("f", [value / length for value in vector])
    if sys.byteorder == "big":
        unit.byteswap()
    return unit.tobytes()
