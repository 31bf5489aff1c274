"""The executor: a thread that makes one token for each running request in a step, and results as TensorRT-LLM's."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from .model import next_token

_STEP_S = 0.0005


class Logprob:
    def __init__(self, logprob: float, rank: int | None = None) -> None:
        self.logprob, self.rank = logprob, rank


class CompletionOutput:
    """Cumulative, as there."""

    def __init__(self) -> None:
        self.index, self.text = 0, ""
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None


class RequestOutput:
    """Async iterator over itself; `abort` is the cancel."""

    def __init__(self, executor: Executor, prompt: list[int], params: Any) -> None:
        self._executor, self._params = executor, params
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.ids, self.num_prompt = list(prompt), len(prompt)
        self.outputs = [CompletionOutput()]
        self.finished = False

    def put(self, token: int | None, rows: dict[int, float], reason: str | None) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (token, rows, reason))

    def abort(self) -> None:
        self._executor.abort(self)

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.finished:
            raise StopAsyncIteration
        token, rows, reason = await self._queue.get()
        output, params = self.outputs[0], self._params
        if token is not None:
            output.token_ids.append(token)
            if params.logprobs:
                output.logprobs.append({key: Logprob(value) for key, value in rows.items()})
        self.finished = reason is not None
        output.finish_reason = {"end_id": "stop", "stop_words": "stop"}.get(reason or "", reason)
        if reason == "stop_words":  # as _handle_sequence: the stop word is cut off again, the end id is not
            output.stop_reason = output.token_ids.pop()
        return self


class Executor:
    """In-flight batching: up to `max_batch` run, the others wait."""

    def __init__(self, vocab: int, max_batch: int) -> None:
        self._vocab, self._max_batch = vocab, max_batch
        self._requests: list[tuple[RequestOutput, Any]] = []
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, prompt: list[int], params: Any) -> RequestOutput:
        result = RequestOutput(self, prompt, params)
        with self._lock:
            self._requests.append((result, params))
        return result

    def abort(self, result: RequestOutput) -> None:
        with self._lock:
            self._requests = [one for one in self._requests if one[0] is not result]
        result.put(None, {}, "cancelled")

    def shutdown(self) -> None:
        self._is_over.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._is_over.is_set():
            with self._lock:
                running = self._requests[: self._max_batch]
            if not running:
                time.sleep(_STEP_S)
            for result, params in running:
                self._step(result, params)

    def _step(self, result: RequestOutput, params: Any) -> None:
        token, rows = next_token(result.ids, result.num_prompt, self._vocab, params)
        result.ids.append(token)
        reason = None
        if token == params.end_id:
            reason = "end_id"
        elif token in (params.stop_token_ids or ()):
            reason = "stop_words"
        elif len(result.ids) - result.num_prompt >= params.max_tokens:
            reason = "length"
        if reason is not None:
            with self._lock:
                self._requests = [one for one in self._requests if one[0] is not result]
        result.put(token, rows, reason)
