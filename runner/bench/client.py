"""HttpTarget: an OpenAI server, measured through its streaming API over kept connections.

Owns request bodies, the pool of connections and what is done where a server lacks a field. Reading answers is
response.py's.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec

from runner.bench.connection import Connection, ConnectionFailed, RawResponse
from runner.bench.records import BenchRequest, Sample
from runner.bench.response import fill_stream, split
from runner.errors import EngineError, UsageError

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
_OPTIONAL = ("ignore_eos", "stream_options")
"""Fields that OpenAI's API or other servers may refuse; left out then, and said so."""


class HttpTarget:
    """One server. `url` may end in /v1 or not; `extra` are further fields of every body."""

    def __init__(
        self,
        url: str,
        *,
        endpoint: str = "chat",
        model: str = "",
        api_key: str | None = None,
        extra: dict[str, Any] | None = None,
        keep_text: bool = False,
        timeout_s: float = 600.0,
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url: got {url!r}; allowed: http://HOST:PORT or https://HOST:PORT")
        self._is_tls = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if self._is_tls else 80)
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self._endpoint, self.model = endpoint, model
        self._api_key, self._extra = api_key, dict(extra or {})
        self._keep_text, self._timeout_s = keep_text, timeout_s
        self._idle: list[Connection] = []
        self._left_out: set[str] = set()

    async def prepare(self) -> list[str]:
        """Find the model's name and which fields the server takes; returns notes for people. Raises EngineError."""
        if not self.model:
            self.model = await self._first_model()
        notes: list[str] = []
        request = BenchRequest(prompt="Hello", max_tokens=2)
        for _ in range(len(_OPTIONAL) + 1):
            sample = await self.run(request)
            if sample.error is None:
                return notes
            refused = next((name for name in _OPTIONAL if name in sample.error and name not in self._left_out), None)
            if refused is None:
                raise EngineError(f"{self._host}:{self._port} does not answer a first request: {sample.error}")
            self._left_out.add(refused)
            notes.append(f"the server refuses {refused}; it is left out")
        return notes

    async def run(self, request: BenchRequest) -> Sample:
        """See Target."""
        sample = Sample(start_s=time.perf_counter())
        try:
            response = await self._exchange(self._post(request))
            sample.end_s = response.times_s[-1]
            fill_stream(sample, response, keep_text=self._keep_text)
            if not sample.is_counted and sample.finish == "length":
                # No usage, but the limit was met: that is a count too, and exact where pieces are not.
                sample.output_tokens, sample.is_counted = request.max_tokens, True
        except (ConnectionFailed, OSError) as error:
            sample.error = str(error) or type(error).__name__
        except (ValueError, msgspec.MsgspecError) as error:
            sample.error = f"an answer that cannot be read: {error}"
        sample.end_s = sample.end_s or time.perf_counter()
        return sample

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET. Raises ConnectionFailed or OSError."""
        response = await self._exchange(self._head("GET", path) + b"\r\n")
        status, body, _ = split(response)
        return status, body

    async def metrics(self) -> dict[str, float]:
        """The server's Prometheus counters, summed over labels; empty where it has none."""
        try:
            status, body = await self.get(f"{self._root}/metrics")
        except (ConnectionFailed, OSError):
            return {}
        return parse_counters(body.decode("utf-8", "replace")) if status == 200 else {}

    async def close(self) -> None:
        """Close all connections."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _first_model(self) -> str:
        try:
            status, body = await self.get(f"{self._root}/v1/models")
        except (ConnectionFailed, OSError) as error:
            raise EngineError(f"no server at {self._host}:{self._port}: {error}") from None
        try:
            return str(msgspec.json.decode(body)["data"][0]["id"])
        except (msgspec.DecodeError, KeyError, IndexError, TypeError):
            raise EngineError(f"GET /v1/models gave HTTP {status} and no model; name it with --model-name") from None

    async def _exchange(self, request: bytes) -> RawResponse:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_open:
                continue
            try:
                return await self._send(connection, request)
            except ConnectionFailed:
                # A server may close an idle connection just as we use it: only then is nothing lost by a new one.
                if connection.has_answered:
                    raise
        return await self._send(await self._connect(), request)

    async def _send(self, connection: Connection, request: bytes) -> RawResponse:
        response = await connection.send(request, self._timeout_s)
        if connection.is_open:
            self._idle.append(connection)
        return response

    async def _connect(self) -> Connection:
        tls = ssl.create_default_context() if self._is_tls else None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=tls)
        return connection

    def _head(self, method: str, path: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}", "Accept: */*"]
        if self._api_key:
            lines.append(f"Authorization: Bearer {self._api_key}")
        return ("\r\n".join(lines) + "\r\n").encode()

    def _post(self, request: BenchRequest) -> bytes:
        body = msgspec.json.encode(self._body(request))
        head = self._head("POST", f"{self._root}/v1{PATHS[self._endpoint]}")
        return head + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def _body(self, request: BenchRequest) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "max_tokens": request.max_tokens, "temperature": 0}
        body |= {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
        if self._endpoint == "chat":
            body["messages"] = request.messages or [{"role": "user", "content": request.prompt}]
        elif request.messages is not None:
            raise UsageError("conversations need --endpoint chat")
        else:
            body["prompt"] = request.prompt
        body |= self._extra
        return {key: value for key, value in body.items() if key not in self._left_out and value is not None}


def parse_counters(text: str) -> dict[str, float]:
    """Counters of a Prometheus page by name (`*_total`, `*_sum`, `*_count`), labels summed up."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if line.startswith("#") or not name.endswith(("_total", "_sum", "_count")):
            continue
        try:
            found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        except (ValueError, IndexError):
            continue
    return found
