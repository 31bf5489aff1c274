"""out=dyn://: an Engine whose answers are made by workers on other machines (in=dyn://, or NVIDIA Dynamo's).

Owns one answer's way: a worker is chosen, and another one if that fails before the first token; after it the answer
goes on elsewhere from the prompt and the tokens so far, as often as the migration limit allows. Which workers there
are is remote_pool.py's, the wire is runner.net's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from runner.engines.merge import merge_tokens
from runner.engines.remote_call import ELSEWHERE, ERRORS, LOST, RemoteCall
from runner.engines.remote_pool import Worker, WorkerPool
from runner.errors import EngineBusy, EngineDied, EngineFailed, LlmrunError, RequestError
from runner.net.client import NetClient
from runner.net.embeddings import VectorReader, encode_embedding
from runner.net.messages import decode_delta, encode_request
from runner.net.planes import TooLarge
from runner.net.responses import ResponseStream, StreamRefused
from runner.net.routing import Prediction
from runner.trace import trace_headers
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest

_PATIENCE_S = 5.0
"""How long an answer that has begun waits for a worker to go on at, however often the pool changes meanwhile."""


class RemoteEngine:
    """One remote model. `about` says for messages what was looked for, and where."""

    def __init__(
        self,
        info: EngineInfo,
        client: NetClient,
        pool: WorkerPool,
        *,
        model: str,
        about: str,
        eos_token_ids: tuple[int, ...] = (),
        mdcsum: str = "",
        migration_limit: int = 0,
    ) -> None:
        self.pool = pool
        self._info, self._client, self._about = info, client, about
        self._model, self._eos_token_ids, self._mdcsum = model, eos_token_ids, mdcsum
        self._migration_limit = migration_limit

    async def start(self) -> EngineInfo:
        """See Engine. That there is a worker was seen by whoever made this."""
        self.pool.start()
        return self._info

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine."""
        answer = _Answer(request, self._migration_limit)
        while True:
            worker = await self._choose(answer)
            unread = self.pool.router.num_blocks(answer.request.token_ids)
            predicted = self.pool.router.last
            self.pool.enter(worker, unread)
            stream: ResponseStream | None = None
            try:
                stream = await self._open(worker, answer)
                while items := await stream.take():
                    delta = answer.take(items)
                    worker.num_tokens += len(delta.token_ids)
                    if unread and delta.token_ids:
                        worker.unread_blocks -= unread
                        unread = 0
                    if predicted is not None:
                        self._learn(predicted, delta)
                    yield delta
                    if answer.is_finished:
                        return
                raise EngineFailed(f"{worker} ended a stream without saying why")
            except (*LOST, StreamRefused) as error:
                self._lost(worker, answer, error)
            except TooLarge as error:
                raise RequestError(str(error), field="messages") from None
            finally:
                if predicted is not None:
                    self.pool.router.settle(predicted)
                if stream is not None:
                    worker.streams.discard(stream)
                    stream.close(is_answered=answer.is_finished)
                self.pool.leave(worker, unread)
            if answer.is_full:
                yield TokenDelta(finish="length")
                return

    async def _choose(self, answer: _Answer) -> Worker:
        """Raises EngineBusy or EngineDied when there is nobody (left) to ask."""
        worker = self.pool.pick(answer.request.token_ids, answer.tried)
        if worker is None and answer.num_made and self.pool.workers:
            # What has begun is worth waiting for: the others may be down for a moment only.
            answer.tried.clear()
            until = asyncio.get_running_loop().time() + _PATIENCE_S
            while worker is None and await self.pool.wait(until - asyncio.get_running_loop().time()):
                worker = self.pool.pick(answer.request.token_ids, answer.tried)
        if worker is not None:
            return worker
        if answer.trouble is not None:
            raise answer.trouble
        raise EngineBusy(self._nobody())

    def _learn(self, predicted: Prediction, delta: TokenDelta) -> None:
        if delta.cached_tokens is not None:
            self.pool.router.correct(predicted, delta.cached_tokens)
        if delta.token_ids:
            self.pool.router.settle(predicted)

    def _nobody(self) -> str:
        downs = "; ".join(f"{worker} is down: {worker.down}" for worker in self.pool.workers)
        return f"no worker serves {self._model} now ({self._about})" + (f"; {downs}" if downs else "")

    async def _open(self, worker: Worker, answer: _Answer) -> ResponseStream:
        body: dict[str, Any] = encode_request(answer.request, self._model, self._eos_token_ids, self._mdcsum)
        headers = trace_headers()
        return await self._client.open(worker.instance, answer.request.id, body, headers, streams=worker.streams)

    def _lost(self, worker: Worker, answer: _Answer, error: Exception) -> None:
        """Prepare the next attempt. Raises what the answer ends with when there can be none."""
        kind = error.kind if isinstance(error, StreamRefused) else "died"
        if kind not in ELSEWHERE:
            raise ERRORS.get(kind, EngineFailed)(str(error)) from None
        if kind == "died":
            self.pool.mark_down(worker, str(error))
        if not answer.is_full:
            answer.lost(worker, error, kind)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """See Engine. One worker makes all vectors of a request."""
        call = self.call(field="input")
        reader = VectorReader(len(request.inputs))
        body = encode_embedding(request, self._model, self._mdcsum)
        async with contextlib.aclosing(call.items(request.id, body)) as items:
            async for item in items:
                reader.read(item)
                call.is_answered = reader.is_complete
        return reader.result()

    def call(self, *, field: str) -> RemoteCall:
        """A call that is not moved. `field`: of the user's request, where that is too large."""
        return RemoteCall(self._client, self.pool, field=field, nobody=self._nobody)

    async def health(self) -> None:
        """See Engine: well while one worker is."""
        if all(worker.down is not None for worker in self.pool.workers):
            raise EngineDied(self._nobody())

    async def stats(self) -> dict[str, float]:
        """See Engine; `NAME@WORKER` is of one worker."""
        workers = self.pool.workers
        numbers = {
            "num_running": float(sum(worker.num_running for worker in workers)),
            "num_workers": float(len(workers)),
            "num_workers_up": float(sum(worker.down is None for worker in workers)),
        }
        for worker in workers:
            name = worker.instance.name
            numbers[f"up@{name}"] = float(worker.down is None)
            numbers[f"num_running@{name}"] = float(worker.num_running)
            numbers[f"requests_total@{name}"] = float(worker.num_requests)
            numbers[f"failures_total@{name}"] = float(worker.num_failures)
            numbers[f"tokens_total@{name}"] = float(worker.num_tokens)
            if self.pool.router.mode == "kv":
                numbers[f"prefix_blocks@{name}"] = float(self.pool.router.num_held(worker.id))
        return numbers

    async def close(self) -> None:
        """See Engine."""
        await self.pool.close()


class _Answer:
    """One answer over all its attempts. `request` is what is left to be made."""

    def __init__(self, request: TokenRequest, max_moves: int) -> None:
        self.request = request
        self.tried: set[int] = set()
        self.num_made = 0
        self.trouble: LlmrunError | None = None
        self.is_finished = False
        self._whole = request
        self._made: list[int] = []
        self._made_here = 0
        self._num_moves, self._max_moves = 0, max_moves
        self._is_cached_told = False

    @property
    def is_full(self) -> bool:
        """Every token was made; only the word that it is the end got lost."""
        return self.num_made >= self._whole.max_tokens

    def take(self, items: list[Any]) -> TokenDelta:
        """The delta of what has come. Raises EngineFailed."""
        stops = self._whole.stop_token_ids
        delta = decode_delta(items[0], stops)
        for item in items[1:]:
            if delta.finish is not None:
                break
            delta = merge_tokens(delta, decode_delta(item, stops))
        num_new = len(delta.token_ids)
        self.num_made += num_new
        self._made_here += num_new
        if self._max_moves:
            self._made += delta.token_ids
        self.is_finished = delta.finish is not None
        if delta.cached_tokens is not None:
            if self._is_cached_told:  # a later worker's cache is not the prompt's
                delta = msgspec.structs.replace(delta, cached_tokens=None)
            self._is_cached_told = True
        return delta

    def lost(self, worker: Worker, error: Exception, kind: str) -> None:
        """An attempt is over. Raises EngineDied when the answer cannot go on."""
        if not self._made_here:
            self.tried.add(worker.id)
            self.trouble = EngineBusy(str(error)) if kind == "busy" else EngineDied(f"{worker}: {error}")
            return
        begun = f"{worker} was lost after {self.num_made} tokens of the answer: {error}"
        if self._num_moves >= self._max_moves:
            raise EngineDied(f"{begun}; --migration-limit (now {self._max_moves}) lets answers go on at another worker")
        if not _can_move(self._whole):
            raise EngineDied(f"{begun}; a guided, penalised or seeded answer cannot go on at another worker")
        self._num_moves += 1
        self._made_here = 0
        self.tried = {worker.id}
        self.trouble = EngineDied(f"{begun}; no other worker can go on with it")
        self.request = _rest(self._whole, self._made)


def _can_move(request: TokenRequest) -> bool:
    """Whether prompt + tokens so far is all that the next token depends on."""
    sampling = request.sampling
    # another worker would begin with the seed's first numbers again: the answer would not be that of the seed
    is_drawn = sampling.seed is not None and sampling.temperature > 0
    is_free = sampling.guided is None and sampling.beam_width == 1 and not is_drawn
    return is_free and not sampling.presence_penalty and not sampling.frequency_penalty


def _rest(whole: TokenRequest, made: list[int]) -> TokenRequest:
    return msgspec.structs.replace(
        whole,
        token_ids=[*whole.token_ids, *made],
        max_tokens=max(1, whole.max_tokens - len(made)),
        min_tokens=max(0, whole.min_tokens - len(made)),
    )
