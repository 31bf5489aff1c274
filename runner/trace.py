"""Trace ids of the request that this task works on: what a client sent to find its request in the logs of others.

They name a request for people and never stand for it: a client may send the same one twice. Knows no transport.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar

REQUEST_ID = "x-request-id"
NAMES = (REQUEST_ID, "traceparent", "tracestate")
"""Headers that are handed on; the last two are those of W3C Trace Context."""
_SANE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,510}[\x21-\x7e])?")
_current: ContextVar[Mapping[str, str] | None] = ContextVar("trace", default=None)


def set_trace(headers: Mapping[str, str], request_id: str | None = None) -> None:
    """For this task and those that it starts. `request_id` stands for that of the headers.

    What is no plain text of at most 512 characters is left out.
    """
    found = {name: headers[name] for name in NAMES if name in headers}
    if request_id is not None:
        found[REQUEST_ID] = request_id
    _current.set({name: value for name, value in found.items() if _SANE.fullmatch(value)})


def trace_headers() -> Mapping[str, str]:
    """Of NAMES, those that are known, in small letters."""
    return _current.get() or {}
