"""A client that can send what no library would, and what must be true of every refusal."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import Any, NamedTuple

from tests.bad_input.program import HANG_S

KEY = "the-right-key"
CHATS = "/v1/chat/completions"
GOOD = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


class Reply(NamedTuple):
    """Status, headers and body of a response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def refused(self, status: int, *telling: str, code: str | None = None) -> dict[str, Any]:
        """The OpenAI error object, after checking that it is one and says all the telling parts."""
        assert self.status == status, (self.status, self.body[:1000])
        assert self.headers["content-type"].startswith("application/json")
        assert b"Traceback" not in self.body
        error: dict[str, Any] = self.json["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        assert error["type"] == ("invalid_request_error" if status < 500 else "server_error"), error
        assert [part for part in telling if part not in error["message"]] == [], error
        assert 0 < len(error["message"]) < 600, error
        assert code is None or error["code"] == code, error
        return error


class Client:
    """Speaks to one server; every request has a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(self, body: bytes, path: str = CHATS, *, method: str = "POST", key: str | None = KEY) -> Reply:
        """The reply to raw bytes."""
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)) as connection:
            connection.request(method, path, body, headers)
            with connection.getresponse() as response:
                received = {name.lower(): value for name, value in response.getheaders()}
                return Reply(response.status, received, response.read())

    def post(self, body: Any, path: str = CHATS, **options: Any) -> Reply:
        """The reply to a body as JSON (Python's, so that NaN and lone surrogates pass)."""
        return self.send(json.dumps(body).encode(), path, **options)

    def ask(self, **changes: Any) -> Reply:
        """The reply to a good chat with some fields changed."""
        return self.post(GOOD | changes)

    def check_alive(self) -> None:
        """A good request is answered, in full."""
        reply = self.ask()
        assert reply.status == 200, reply
        choice = reply.json["choices"][0]
        assert choice["finish_reason"] in ("stop", "length") and choice["message"]["role"] == "assistant"
        assert reply.json["usage"]["completion_tokens"] > 0
