"""A scripted OpenAI server on a raw socket: every byte and pause is chosen by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

Handler = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request that came in, and ways to answer it."""

    def __init__(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.path, self.body, self._writer = path, body, writer

    async def reply(self, status: int, data: Any) -> None:
        """A whole JSON answer with Content-Length."""
        payload = json.dumps(data).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        await self.send(head.encode() + payload)

    async def send(self, data: bytes) -> None:
        """Raw bytes."""
        self._writer.write(data)
        await self._writer.drain()

    async def start_stream(self) -> None:
        """Head of a chunked stream."""
        await self.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")

    async def event(self, data: Any, separator: str = "\n\n") -> None:
        """One server-sent event in one chunk."""
        text = data if isinstance(data, str) else json.dumps(data)
        payload = f"data: {text}{separator}".encode()
        await self.send(b"%x\r\n%b\r\n" % (len(payload), payload))

    async def end_stream(self) -> None:
        """The last chunk."""
        await self.send(b"0\r\n\r\n")

    def drop(self) -> None:
        """Close without an end."""
        self._writer.transport.abort()


class FakeServer:
    """Serves until closed; `requests` holds what came."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.requests: list[Exchange] = []
        self.num_connections = 0
        self.url = ""

    async def __aenter__(self) -> FakeServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                sizes = [line.split(":")[1] for line in lines if line.lower().startswith("content-length:")]
                body = await reader.readexactly(int(sizes[0])) if sizes else b"{}"
                exchange = Exchange(lines[0].split(" ")[1], json.loads(body), writer)
                self.requests.append(exchange)
                await self._handler(exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def text_chunk(text: str) -> dict[str, Any]:
    """A chunk of a chat stream."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def usage_chunk(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """The usage chunk that ends a stream."""
    details = {"cached_tokens": cached}
    return {
        "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details},
    }


ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}]}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
