"""Frames, addresses, records, messages and the planes, on loopback; hostile bytes at every socket."""

from __future__ import annotations

import asyncio
import random
import struct
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import EngineFailed, RequestError, UsageError
from runner.net import planes
from runner.net.addresses import Address, parse_address
from runner.net.answers import ResponseWriter, open_response
from runner.net.frames import Frame, FrameError, FrameParser, decode_frame, encode_frame
from runner.net.messages import decode_delta, decode_request, encode_delta, encode_request, is_late
from runner.net.planes import NatsEndpoint, NatsRequests, Refused, TcpEndpoint, TcpRequests, Unreachable
from runner.net.records import Instance, RecordError, decode_card, decode_instance, encode_instance, instance_keys
from runner.net.responses import CallHome, StreamBroken, StreamRefused
from runner.types import GuidedDecoding, SamplingParams, TokenDelta, TokenLogprob, TokenRequest
from tests.runner.net import daemons

ADDRESS = Address("ns", "comp", "ep")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("dyn://a.b.c", Address("a", "b", "c")),
        ("//a.b.c", Address("a", "b", "c")),
        ("dyn://a/b/c", Address("a", "b", "c")),
        ("dyn://llama3B_pool", Address("NS", "llama3B_pool", "E")),
        ("dyn://a.b", Address("a", "b", "E")),
        ("dyn://a.b.c.d", Address("a", "b", "c_d")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["dyn://", "dyn://a b", "dyn://a.ä", "dyn://a*"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        parse_address(text)


def test_a_frame_is_dynamos() -> None:
    data = encode_frame(b"head", b"body")
    assert data == struct.pack(">QQQ", 4, 4, xxhash.xxh3_64_intdigest(b"headbody")) + b"headbody"
    assert decode_frame(data) == Frame(b"head", b"body")
    assert decode_frame(struct.pack(">QQQ", 1, 0, 0) + b"x") == Frame(b"x", b"")  # 0: no checksum
    with pytest.raises(FrameError, match="checksum"):
        decode_frame(data[:-1] + b"x")
    with pytest.raises(FrameError, match="at most"):
        FrameParser().feed(struct.pack(">QQQ", 1 << 62, 1 << 62, 0))
    with pytest.raises(FrameError, match="are not one frame"):
        decode_frame(data[:-1])


@given(st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=40)), max_size=6), st.integers(1, 30))
def test_frames_come_out_whole_however_they_are_cut(parts: list[tuple[bytes, bytes]], size: int) -> None:
    data = b"".join(encode_frame(*part) for part in parts)
    parser = FrameParser()
    found = [frame for at in range(0, len(data), size) for frame in parser.feed(data[at : at + size])]
    assert [tuple(frame) for frame in found] == parts
    assert parser.num_waiting == 0


def test_instances_in_both_layouts() -> None:
    instance = Instance(address=ADDRESS, id=0xABC, plane="tcp", target="127.0.0.1:1/abc/ns/comp/ep", codec="msgpack")
    keys, values = instance_keys(ADDRESS, 0xABC), encode_instance(instance)
    assert keys == ("v1/instances/ns/comp/ep/abc", "instances/ns/comp/ep:abc")
    assert decode_instance(keys[0], values[0]) == instance
    assert decode_instance(keys[1], values[1]).codec == "json"
    assert ADDRESS.subject(0xABC) == "ns_comp.ep-abc"


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b"\xff", b'{"transport":{"quic":"x"}}', b'{"transport":{"tcp":"x"}}', b"{}"]
)
def test_a_bad_record_is_named(value: bytes) -> None:
    with pytest.raises(RecordError, match=r"^the-key: "):
        decode_instance("the-key", value)
    with pytest.raises(RecordError, match=r"^the-key: "):
        decode_card("the-key", value)


def test_a_request_between_us_loses_nothing() -> None:
    sampling = SamplingParams(
        temperature=0.7, logit_bias={5: -1.5}, bad_words_ids=((1, 2),), logprobs=3, guided=GuidedDecoding(regex="a+")
    )
    one = TokenRequest(
        id="r", token_ids=[1, 2, 3], sampling=sampling, max_tokens=9, min_tokens=2, stop_token_ids=(7, 8), adapter="x"
    )
    body = encode_request(one, "m", (7,), "sum")
    import msgspec

    for codec in (msgspec.json, msgspec.msgpack):
        assert decode_request(codec.decode(codec.encode(body)), "r", 100) == one


def test_a_request_of_a_dynamo_frontend() -> None:
    body = {
        "token_ids": [1, 2],
        "stop_conditions": {"max_tokens": None, "stop_token_ids_hidden": [5], "ignore_eos": False},
        "sampling_options": {"temperature": 0.5, "top_k": -1, "guided_decoding": {"json": {"type": "object"}}},
        "output_options": {"logprobs": None},
        "eos_token_ids": [2, 5],
    }
    one = decode_request(body, "r", 100)
    assert (one.max_tokens, one.stop_token_ids, one.sampling.temperature, one.sampling.top_k) == (98, (5, 2), 0.5, 0)
    assert one.sampling.guided == GuidedDecoding(json_schema={"type": "object"})
    for wrong in (None, [], {}, {"token_ids": "x"}, {"token_ids": [1], "sampling_options": {"temperature": "hot"}}):
        with pytest.raises(RequestError, match="cannot be read"):
            decode_request(wrong, "r", 100)


def test_deltas() -> None:
    delta = TokenDelta([1, 2], "length", [TokenLogprob(1, -0.5, [(1, -0.5)]), TokenLogprob(2, -0.1, [])], None, 4)
    assert decode_delta(encode_delta(delta, 10, 2), ()) == delta
    stopped = TokenDelta([1], "stop", None, 9)
    assert decode_delta(encode_delta(stopped, 10, 1), (9,)) == stopped
    assert decode_delta({"token_ids": [1, 9], "finish_reason": "eos"}, (9,)) == stopped
    for wrong in (None, [], {"token_ids": ["x"]}, {"token_ids": [1], "finish_reason": {"error": "boom"}}):
        with pytest.raises(EngineFailed):
            decode_delta(wrong, ())
    assert is_late("1.0") and not is_late(None) and not is_late("x")


# the planes


async def _stream(home: CallHome, codec: str = "msgpack") -> tuple[Any, ResponseWriter]:
    stream = home.expect(codec)
    import msgspec

    info = msgspec.json.decode(home.connection_info(stream, "r")["info"])
    return stream, await open_response(info, codec)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_response_from_end_to_end(codec: str) -> None:
    home = CallHome("127.0.0.1")
    await home.start()
    stream, writer = await _stream(home, codec)
    await writer.accept()
    await stream.opened(2)
    for number in range(1000):
        await writer.send({"n": number})
    closing = asyncio.create_task(writer.finish())
    seen: list[int] = []
    while items := await stream.take(2):
        seen += [item["n"] for item in items]
    assert seen == list(range(1000))
    await closing
    assert not writer.stopped.is_set()
    stream.close()
    await writer.close()
    await home.close()


async def test_refusals_breaks_and_kills() -> None:
    home = CallHome("127.0.0.1")
    await home.start()
    stream, writer = await _stream(home)
    await writer.accept("no room")
    with pytest.raises(StreamRefused, match="no room"):
        await stream.opened(2)
        await stream.take(2)
    await writer.close(linger=False)
    stream, writer = await _stream(home)
    await writer.accept()
    await writer.send({"n": 1})
    await stream.opened(2)
    await writer.close(linger=False)
    assert await stream.take(2) == [{"n": 1}]
    with pytest.raises(StreamBroken, match="before the answer was complete"):
        await stream.take(2)
    stream, writer = await _stream(home)
    await writer.accept()
    await stream.opened(2)
    stream.close()
    await asyncio.wait_for(writer.stopped.wait(), 1)
    await writer.close()
    stream = home.expect("json")
    with pytest.raises(TimeoutError):
        await stream.opened(0.05)
    await home.close()


async def test_a_slow_reader_holds_the_worker_up() -> None:
    home = CallHome("127.0.0.1")
    await home.start()
    stream, writer = await _stream(home)
    await writer.accept()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for _ in range(3000):
            await writer.send({"x": "y" * 10_000})
            sent += 1
        await writer.finish()

    task = asyncio.create_task(flood())
    await asyncio.sleep(0.5)
    assert sent < 3000
    total = 0
    while items := await stream.take(5):
        total += len(items)
    assert total == 3000
    await task
    stream.close()
    await writer.close()
    await home.close()


@pytest.mark.parametrize("plane", ["tcp", pytest.param("nats_tcp", marks=pytest.mark.dist)])
async def test_requests_are_taken_refused_or_not_answered(plane: Any) -> None:
    taken: list[tuple[bytes, dict[str, str]]] = []

    def take(frame: bytes, headers: dict[str, str]) -> str | None:
        taken.append((frame, headers))
        return "full" if frame == b"bad" else None

    daemon = None
    endpoint: Any
    requests: Any
    if plane == "tcp":
        endpoint, requests = TcpEndpoint("127.0.0.1", take), TcpRequests()
        target = await endpoint.start("1/ns/comp/ep")
    else:
        daemon = daemons.nats()
        daemon.start()
        url = f"nats://127.0.0.1:{daemon.port}"
        endpoint, requests = NatsEndpoint(url, take), NatsRequests(url)
        target = await endpoint.start("ns_comp.ep-1")
    instance = Instance(address=ADDRESS, id=1, plane=plane, target=target)
    try:
        await asyncio.gather(*(requests.send(instance, b"%d" % n, {"a": "b"}) for n in range(20)))
        assert sorted(frame for frame, _ in taken) == sorted(b"%d" % n for n in range(20))
        assert taken[0][1]["a"] == "b"
        with pytest.raises(Refused, match="full"):
            await requests.send(instance, b"bad", {})
        await endpoint.close()
        with pytest.raises(Unreachable):
            await requests.send(instance, b"x", {})
    finally:
        await requests.close()
        await endpoint.close()
        if daemon is not None:
            daemon.kill()


async def test_hostile_bytes_take_nobody_down() -> None:
    home = CallHome("127.0.0.1")
    await home.start()
    taken: list[bytes] = []
    endpoint = TcpEndpoint("127.0.0.1", lambda frame, headers: taken.append(frame))
    target = await endpoint.start("p")
    rng = random.Random(5)
    good = encode_frame(b'{"subject":"x","stream_type":"response"}', b"")
    for number in range(200):
        port = int((home.address if number % 2 else target.partition("/")[0]).rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = bytearray(good if rng.random() < 0.5 else rng.randbytes(rng.randrange(1, 200)))
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        writer.write(bytes(data))
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
    assert not taken
    stream, response = await _stream(home)
    await response.accept()
    await stream.opened(2)
    stream.close()
    await response.close()
    await endpoint.close()
    await home.close()


@pytest.mark.parametrize("is_told", [True, False])
async def test_an_answer_that_ends_before_it_was_taken_ends_at_the_ingress_at_once(is_told: bool) -> None:
    """Not after ten seconds without a call home."""
    home = CallHome("127.0.0.1")
    await home.start()
    stream = home.expect("msgpack")
    writer = await open_response({"address": home.address, "subject": stream.subject}, "msgpack")
    if is_told:
        await writer.fail("internal error", "failed")
    await writer.close(linger=False)
    with pytest.raises(StreamRefused if is_told else StreamBroken):
        await stream.opened(2)
        await stream.take(2)
    stream.close()
    await home.close()


async def test_who_waits_for_a_connection_that_another_gives_up_hears_of_it() -> None:
    """And is not taken for cancelled, which nobody would answer."""
    connection = planes._TcpConnection("198.51.100.1:9")  # TEST-NET: nobody answers
    asks = [asyncio.create_task(connection.ask("path", {}, b"")) for _ in range(2)]
    await asyncio.sleep(0.05)
    connection.close()
    results = await asyncio.gather(*asks, return_exceptions=True)
    assert all(isinstance(one, OSError) for one in results), results
