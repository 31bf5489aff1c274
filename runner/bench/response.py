"""Reading a complete response: status, body, server-sent events with their arrival times.

Runs after the answer has ended, so that it disturbs no timing. Events between the first text and the end are counted,
not decoded, unless the text is wanted. Owns HTTP chunk framing and the shapes of OpenAI's stream; knows no sockets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec

from runner.bench.connection import RawResponse
from runner.bench.records import Sample


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def split(response: RawResponse) -> tuple[int, bytes, list[int]]:
    """(status, body without chunk framing, end offset in the body of each packet)."""
    raw = b"".join(response.packets)
    at = raw.find(b"\r\n\r\n")
    head, status = raw[:at].lower(), int(raw[9:12])
    ends, position = [], -at - 4
    for packet in response.packets:
        position += len(packet)
        ends.append(position)
    if b"\r\ntransfer-encoding: chunked" not in head:
        return status, raw[at + 4 :], ends
    body, marks = _unchunk(raw, at + 4)
    return status, body, _move(ends, marks)


def _unchunk(raw: bytes, at: int) -> tuple[bytes, list[tuple[int, int]]]:
    """(body, [(offset of a chunk's end in the framed body, offset in the body)])."""
    parts: list[bytes] = []
    marks: list[tuple[int, int]] = []
    start, length = at, 0
    while True:
        line_end = raw.index(b"\r\n", at)
        size = int(raw[at:line_end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(parts), marks
        at = line_end + 2
        parts.append(raw[at : at + size])
        length += size
        at += size + 2
        marks.append((at - start, length))


def _move(ends: list[int], marks: list[tuple[int, int]]) -> list[int]:
    """Packet ends from framed offsets to body offsets: the complete chunks that each packet ended with or after."""
    framed = [mark[0] for mark in marks]
    moved = []
    for end in ends:
        # The "\r\n" after a chunk may come with the next packet.
        chunks = bisect_right(framed, end + 2)
        moved.append(marks[chunks - 1][1] if chunks else 0)
    return moved


def _events(body: bytes) -> Iterator[tuple[int, bytes]]:
    """(offset of the event's end, data) for each `data:` line of the body."""
    at = 0
    while True:
        start = body.find(b"data:", at)
        if start < 0:
            return
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        yield end, body[start + 5 : end].strip()
        at = end


def fill_stream(sample: Sample, response: RawResponse, *, keep_text: bool) -> None:
    """Put what a streamed answer says into the sample: times, counts, finish reason, error."""
    status, body, ends = split(response)
    if status != 200:
        sample.error = f"HTTP {status}: {_error_text(body)}"
        return
    events = list(_events(body))
    if not events or events[-1][1] != b"[DONE]":
        sample.error = _broken(events)
        return
    events.pop()
    first = _first_text(events)
    if first is None:
        _read_ending(sample, events, keep_text=keep_text, num_texts=0)
        return
    arrived = _arrival_times(events[first : _last_text(events) + 1], ends, response.times_s)
    sample.first_s = arrived[0]
    distinct = [time for i, time in enumerate(arrived) if i == 0 or time != arrived[i - 1]]
    sample.gaps_s = [later - earlier for earlier, later in pairwise(distinct)]
    _read_ending(sample, events, keep_text=keep_text, num_texts=len(arrived))


def _first_text(events: list[tuple[int, bytes]]) -> int | None:
    for i, (_, data) in enumerate(events):
        if _text_of(_decode(data)):
            return i
    return None


def _last_text(events: list[tuple[int, bytes]]) -> int:
    return next(i for i in range(len(events) - 1, -1, -1) if _text_of(_decode(events[i][1])))


def _text_of(chunk: _Chunk) -> str:
    parts = []
    for choice in chunk.choices:
        delta = choice.delta
        parts.append(choice.text or "")
        if delta is not None:
            parts += [delta.reasoning_content or "", delta.content or "", "tool" if delta.tool_calls else ""]
    return "".join(parts)


def _arrival_times(events: list[tuple[int, bytes]], ends: list[int], times_s: list[float]) -> list[float]:
    """When the packet came that completed each event (its blank line may still be on the way)."""
    return [times_s[min(bisect_right(ends, end - 1), len(times_s) - 1)] for end, _ in events]


def _read_ending(sample: Sample, events: list[tuple[int, bytes]], *, keep_text: bool, num_texts: int) -> None:
    """Decode the last events (all, if the text is wanted): finish reason, usage, an error in mid-stream."""
    tail = [_decode(data) for _, data in (events if keep_text else events[-4:])]
    usage = None
    for chunk in tail:
        if chunk.error is not None:
            sample.error = f"in mid-stream: {chunk.error}"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            sample.finish = choice.finish_reason or sample.finish
    if keep_text:
        sample.text = "".join(map(_text_of, tail))
    _read_usage(sample, usage, fallback=num_texts)


def _read_usage(sample: Sample, usage: _Usage | None, fallback: int) -> None:
    if usage is None:
        sample.output_tokens = fallback
        return
    sample.is_counted = True
    sample.prompt_tokens = usage.prompt_tokens
    sample.output_tokens = usage.completion_tokens
    if usage.prompt_tokens_details is not None:
        sample.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0


def _broken(events: list[tuple[int, bytes]]) -> str:
    """What a stream without [DONE] says: its error event, or that it was cut."""
    for _, data in events[-2:]:
        try:
            error = _decode(data).error
        except msgspec.DecodeError:
            continue
        if error is not None:
            return f"in mid-stream: {error}"
    return f"the stream ended without [DONE] after {len(events)} events"


def _error_text(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    try:
        data = msgspec.json.decode(body)
        error = data.get("error", data)
        text = error["message"] if isinstance(error, dict) and "message" in error else str(error)
    except (msgspec.DecodeError, AttributeError):
        pass
    return text[:300]
