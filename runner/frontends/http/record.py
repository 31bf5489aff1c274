"""What is counted and logged of one request, and the families of metrics it goes into.

Names and labels of the dynamo_frontend_* families are Dynamo's (lib/llm/src/http/service/metrics.rs), so that its
dashboards work. Knows nothing of routes or of how an answer is made.
"""

from __future__ import annotations

from bisect import bisect_left
from time import perf_counter
from typing import Any

from runner.metrics import Buckets, Registry, Value
from runner.types import TextDelta, Usage

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAPS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class Instruments:
    """All families of the HTTP frontend."""

    def __init__(self, registry: Registry) -> None:
        name = "dynamo_frontend_{}".format
        by_kind = ("model", "endpoint", "request_type", "status")
        self.requests = registry.counter(name("requests_total"), "Requests that ended", *by_kind)
        self.inflight = registry.gauge(name("inflight_requests"), "Requests being answered", "model")
        self.queued = registry.gauge(name("queued_requests"), "Requests without a first token yet", "model")
        self.disconnected = registry.counter(name("disconnected_clients"), "Clients that left before the end", "model")
        self.output_tokens = registry.counter(name("output_tokens_total"), "Tokens answered", "model")
        hist = registry.histogram
        self.duration = hist(name("request_duration_seconds"), "Time of whole requests", _SECONDS, "model")
        self.input_len = hist(name("input_sequence_tokens"), "Tokens of prompts", _TOKENS, "model")
        self.output_len = hist(name("output_sequence_tokens"), "Tokens of answers", _TOKENS, "model")
        self.cached = hist(name("cached_tokens"), "Prompt tokens taken from the prefix cache", (0, *_TOKENS), "model")
        self.ttft = hist(name("time_to_first_token_seconds"), "Time to the first token", _SECONDS, "model")
        self.itl = hist(name("inter_token_latency_seconds"), "Time between tokens", _GAPS, "model")
        self.http = registry.counter("llmrun_http_responses_total", "Responses by status", "route", "status")


class Record:
    """One request, from its head to its end."""

    def __init__(self, instruments: Instruments, *, request_id: str, method: str, path: str, route: str) -> None:
        self._instruments = instruments
        self._started = perf_counter()
        self._gap: Buckets | None = None
        self._inflight: Value
        self._queued: Value
        self._output: Value
        self._first_at = 0.0
        self._last_at = 0.0
        self.request_id, self.method, self.path = request_id, method, path
        self._route = route
        self.model = ""
        self._endpoint = ""
        self._is_stream = False
        self._num_tokens = 0
        self._usage: Usage | None = None
        self.error: str | None = None
        self.error_status: int | None = None
        """Set when an answer failed after its status 200 was sent."""

    def begin(self, *, model: str, endpoint: str, is_stream: bool) -> None:
        """The request is understood and goes to the model."""
        self.model, self._endpoint, self._is_stream = model, endpoint, is_stream
        self._inflight, self._queued = self._instruments.inflight.of(model), self._instruments.queued.of(model)
        self._inflight.add()
        self._queued.add()
        self._output = self._instruments.output_tokens.of(model)
        self._gap = self._instruments.itl.of(model)

    def add(self, delta: TextDelta) -> None:
        """A delta arrived. On the token path: Buckets.observe is written out here."""
        now = perf_counter()
        if delta.usage is not None:
            self.add_usage(delta.usage)
        num = len(delta.token_ids) or (1 if delta.text else 0)
        if not num:
            return
        self._num_tokens += num
        self._output.value += num
        if self._last_at:
            gap, waited = self._gap, now - self._last_at
            assert gap is not None
            gap.counts[bisect_left(gap.bounds, waited / num)] += num
            gap.total += waited
        else:
            self._first_at = now
            self._queued.add(-1)
            self._instruments.ttft.of(self.model).observe(now - self._started)
        self._last_at = now

    def add_usage(self, usage: Usage) -> None:
        """The counts of one prompt."""
        instruments = self._instruments
        instruments.input_len.of(self.model).observe(usage.prompt_tokens)
        instruments.cached.of(self.model).observe(usage.cached_tokens)
        old = self._usage or Usage(prompt_tokens=0, completion_tokens=0)
        self._usage = Usage(
            prompt_tokens=old.prompt_tokens + usage.prompt_tokens,
            completion_tokens=old.completion_tokens + usage.completion_tokens,
            cached_tokens=old.cached_tokens + usage.cached_tokens,
        )

    def end(self, status: int, *, is_disconnect: bool = False) -> dict[str, Any]:
        """Count the request; returns the fields of its log line."""
        duration = perf_counter() - self._started
        failed = status >= 400 or self.error is not None or is_disconnect
        if self._gap is not None:
            self._count(duration, failed=failed, is_disconnect=is_disconnect)
        self._instruments.http.of(self._route, str(status)).add()
        usage = self._usage
        tokens = usage.completion_tokens if usage else self._num_tokens
        return {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": status,
            "duration_s": round(duration, 6),
            "model": self.model or None,
            "stream": self._is_stream if self._gap is not None else None,
            "ttft_s": round(self._first_at - self._started, 6) if self._first_at else None,
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "cached_tokens": usage.cached_tokens if usage else None,
            "completion_tokens": tokens if self._gap is not None else None,
            "error": self.error,
        }

    def _count(self, duration: float, *, failed: bool, is_disconnect: bool) -> None:
        instruments, model = self._instruments, self.model
        self._inflight.add(-1)
        if not self._first_at:
            self._queued.add(-1)
        kind = "stream" if self._is_stream else "unary"
        instruments.requests.of(model, self._endpoint, kind, "error" if failed else "success").add()
        instruments.duration.of(model).observe(duration)
        tokens = self._usage.completion_tokens if self._usage else self._num_tokens
        self._output.add(tokens - self._num_tokens)  # the stop token has no delta
        if self._endpoint != "embeddings":
            instruments.output_len.of(model).observe(tokens)
        if is_disconnect:
            instruments.disconnected.of(model).add()
