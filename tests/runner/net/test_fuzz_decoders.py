"""Mutated bytes and mutated trees at every decoder of runner/net: a documented error or a value that is right, no more.

Everyday 30,000 inputs; `-m fuzz` a million (LLMRUN_FUZZ_FRAMES: as many).
"""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import psutil
import pytest
import xxhash

from model_cards.card import ModelCard
from model_cards.errors import CardError
from model_cards.resolve import resolve
from runner.engines.user_chunks import ChunkReader, chat_body
from runner.errors import EngineFailed, RequestError
from runner.frontends.endpoint_answers import TextAnswers
from runner.net.addresses import parse_host_port
from runner.net.block_events import BlockChange, EventError, decode_changes, encode_changes
from runner.net.card_files import CardFile, OwnCard, read_own_card
from runner.net.codecs import decode_item
from runner.net.embeddings import VectorReader, decode_embedding, encode_embedding, encode_vectors, is_embedding
from runner.net.etcd import _Lines
from runner.net.etcd_answers import Found, Granted, Kept, Life, Watched, decode_answer
from runner.net.frames import FrameError, FrameParser, decode_frame, encode_frame
from runner.net.messages import decode_delta, decode_request, encode_delta, encode_request, is_late
from runner.net.records import (
    Address,
    Instance,
    RecordError,
    decode_card,
    decode_instance,
    encode_card,
    encode_instance,
)
from runner.net.texts import decode_own_text, encode_text, own_request
from runner.types import (
    ChatRequest,
    EmbedRequest,
    EmbedResult,
    EngineInfo,
    GuidedDecoding,
    SamplingParams,
    TextDelta,
    TokenDelta,
    TokenLogprob,
    TokenRequest,
    Usage,
)
from tests.runner.net.mutations import Mutator, deep_json, deep_msgpack

NUM_FRAMES = int(os.environ.get("LLMRUN_FUZZ_FRAMES", "1000000"))
SIZES = [pytest.param(30_000, id="everyday"), pytest.param(NUM_FRAMES, id="full", marks=pytest.mark.fuzz)]
_LEAK_BYTES = 48 << 20
_MAX_ID = 2**31 - 1

ADDRESS = Address("ns", "pool", "gen")
REQUEST = TokenRequest(
    id="r",
    token_ids=[1, 2, 3],
    sampling=SamplingParams(temperature=0.5, logit_bias={5: 1.0}, logprobs=2, guided=GuidedDecoding(regex="a+")),
    max_tokens=9,
    stop_token_ids=(7,),
)
DELTA = TokenDelta([1, 2], "stop", [TokenLogprob(1, -0.5, [(1, -0.5)]), TokenLogprob(2, -1.0, [])], 7, 4)


def plain(value: Any) -> Any:
    """As a decoder gives it: lists and text keys."""
    return msgspec.json.decode(msgspec.json.encode(value))


class Target:
    """One decoder. `errors` are those that it may raise; `feed` asserts that what it takes is right."""

    def __init__(self, errors: tuple[type[Exception], ...], seeds: list[Any], feed: Callable[[Any], object]) -> None:
        self.errors, self.seeds, self.feed = errors, seeds, feed
        self.num_taken = self.num_refused = 0

    def push(self, value: Any) -> None:
        try:
            self.feed(value)
        except self.errors:
            self.num_refused += 1
        else:
            self.num_taken += 1


def feed_frame(data: bytes) -> None:
    frame = decode_frame(data)
    header_len, body_len, checksum = struct.unpack_from(">QQQ", data)
    both = data[24:]
    assert (len(frame.header), len(frame.body)) == (header_len, body_len) and frame.header + frame.body == both
    assert checksum in (0, xxhash.xxh3_64_intdigest(both))


def feed_frames(data: bytes) -> None:
    parser = FrameParser(1 << 16)
    for at in range(0, len(data), 7):
        for frame in parser.feed(data[at : at + 7]):
            assert len(frame.header) + len(frame.body) <= 1 << 16
    assert parser.num_waiting <= (1 << 16) + 24


def feed_instance(value: bytes) -> None:
    instance = decode_instance("k", value)
    assert msgspec.convert(msgspec.to_builtins(instance), Instance) == instance
    assert 0 <= instance.id < 1 << 64 and instance.target
    if instance.plane == "tcp":
        parse_host_port(instance.target.removeprefix("tcp://").partition("/")[0])


def feed_card(value: bytes) -> None:
    address, instance_id, card = decode_card("k", value)
    assert address.path.count("/") == 2 and 0 <= instance_id < 1 << 64
    own = read_own_card(card)
    if own is not None:
        assert all("/" not in name and name not in ("", ".", "..") for name in own.files)
        assert ModelCard.from_json(own.card).to_json()


def feed_request(codec: str, body: bytes) -> None:
    one = decode_request(decode_item(codec, body), "r", 100)
    assert msgspec.convert(msgspec.to_builtins(one, str_keys=True), TokenRequest, strict=False) == one
    assert all(0 <= i <= _MAX_ID for i in (*one.token_ids, *one.stop_token_ids))
    assert one.max_tokens >= 1 and one.min_tokens >= 0


def feed_delta(item: Any) -> None:
    delta = decode_delta(item, (7,))
    assert msgspec.convert(msgspec.to_builtins(delta), TokenDelta) == delta
    assert type(delta.token_ids) is list and all(0 <= i <= _MAX_ID for i in delta.token_ids)


def feed_embedding(body: bytes) -> None:
    value = decode_item("json", body)
    if not is_embedding(value):
        raise ValueError("not for embeddings")
    one = decode_embedding(value, "r")
    assert one.inputs and all(ids and all(0 <= i <= _MAX_ID for i in ids) for ids in one.inputs)


def feed_vectors(item: Any) -> None:
    reader = VectorReader(2)
    reader.read(item)
    result = reader.result()
    assert len(result.vectors) == 2 and len(result.vectors[0]) == len(result.vectors[1]) > 0
    assert type(result.prompt_tokens) is int


def feed_text_request(body: bytes) -> None:
    one, _ = TextAnswers(None).read(decode_item("json", body), "r")  # type: ignore[arg-type]
    assert msgspec.convert(msgspec.to_builtins(one, str_keys=True), ChatRequest, strict=False) == one and one.id == "r"


def feed_text(item: Any) -> None:
    delta = decode_own_text(item)
    for one in ChunkReader("a worker").read(item) if delta is None else [delta]:
        assert msgspec.convert(msgspec.to_builtins(one), TextDelta) == one


def feed_watch(data: bytes) -> None:
    for line in _Lines().feed(data + b"\n"):
        for event in decode_answer(line, Watched).result.events:
            assert isinstance(event.kv.name, str) and isinstance(event.kv.data, bytes)


def feed_found(data: bytes) -> None:
    answer = decode_answer(data, Found)
    assert all(isinstance(kv.data, bytes) and int(kv.lease) >= -(1 << 63) for kv in answer.kvs)
    assert isinstance(int(answer.header.revision), int)


def feed_lease(data: bytes) -> None:
    assert isinstance(int(decode_answer(data, Granted).ID), int)
    assert isinstance(int(decode_answer(data, Kept).result.TTL), int)
    assert isinstance(int(decode_answer(data, Life).grantedTTL), int)


def feed_address(data: bytes) -> None:
    host, port = parse_host_port(data.decode(errors="replace"))
    assert host and 0 < port < 1 << 16


def feed_events(data: bytes) -> None:
    for change in decode_changes(data):
        numbers = [number for block in change.blocks for number in block]
        assert all(0 <= one < 1 << 64 for one in (*numbers, *change.removed, change.parent or 0))
        assert change.kind in ("stored", "removed", "cleared") and change.worker_id >= 0


def feed_late(data: bytes) -> None:
    assert is_late(data.decode(errors="replace")) in (True, False)


def own_card_record() -> dict[str, Any]:
    card = resolve("demo")
    short = msgspec.structs.replace(card, chat_template="{{x}}", details={}, special_tokens={"a": "b"})
    own = OwnCard(
        card=short.to_json(),
        info=EngineInfo(name="mocker"),
        files={"tokenizer.json": CardFile(url="http://h/f", blake3="0" * 64, size=5)},
    )
    body = {"display_name": "x", "context_length": 64, "user_data": {"llmrun": msgspec.to_builtins(own)}}
    return dict(plain({**msgspec.json.decode(encode_card(ADDRESS, 5, {})), "card_json": body}))


def targets() -> dict[str, Target]:
    """Bytes of each decoder; `trees` beside them are mutated as trees and encoded again."""
    record = encode_instance(Instance(address=ADDRESS, id=5, plane="tcp", target="127.0.0.1:9/5/ns/pool/gen"))
    subject = encode_instance(Instance(address=ADDRESS, id=5, plane="nats_tcp", target="ns_pool.gen-5"))
    card = own_card_record()
    request = plain(encode_request(REQUEST, "m", (7,), "sum"))
    foreign = {k: v for k, v in request.items() if k != "llmrun"}
    frames = encode_frame(b'{"id":"x"}', b"body") + encode_frame(b'"sentinel"')
    watch = b'{"result":{"header":{"revision":"3"},"events":[{"kv":{"key":"azE=","value":"dg==","lease":"5"}}]}}'
    found = b'{"header":{"revision":"3"},"kvs":[{"key":"azE=","value":"dg==","lease":"5"}],"count":"1"}'
    life = b'{"result":{"TTL":"9"},"ID":"77","TTL":"3","grantedTTL":"10"}'
    unreadable = (ValueError, RecursionError, RequestError)
    json = [msgspec.json.encode(one) for one in (request, foreign)]
    msgpack = [msgspec.msgpack.encode(one) for one in (request, foreign)]
    changes = [BlockChange(5, 1, "stored", 7, [(8, 9), (10, 11)]), BlockChange(5, 2, "removed", removed=[8])]
    vectors = EmbedResult(vectors=[b"abcd", b"efgh"], prompt_tokens=3)
    embedding = plain(encode_embedding(EmbedRequest(id="r", inputs=[[1, 2], [3]]), "m", "sum"))
    chat = ChatRequest(id="r", messages=[{"role": "user", "content": "hi"}], max_tokens=3, stop=("x",))
    openai = chat_body(chat, "m")
    own_chat = plain({**openai, "llmrun": own_request(chat)})
    texts = [TextDelta(text="a"), TextDelta(finish="stop", usage=Usage(prompt_tokens=1, completion_tokens=2))]
    chunks = [encode_text(one, chat, "m", 5, is_own=is_own) for one in texts for is_own in (True, False)]
    deltas = [encode_delta(DELTA, 3, 2), encode_delta(TokenDelta([5]), 3, 1)]
    return {
        "frame": Target((FrameError,), [encode_frame(b'{"id":"x"}', b"body" * 9)], feed_frame),
        "frames": Target((FrameError,), [frames], feed_frames),
        "instance": Target((RecordError,), [*record, *subject], feed_instance),
        "card": Target((RecordError, CardError), [msgspec.json.encode(card)], feed_card),
        "request.json": Target(unreadable, json, lambda data: feed_request("json", data)),
        "request.msgpack": Target(unreadable, msgpack, lambda data: feed_request("msgpack", data)),
        "delta": Target((EngineFailed,), plain(deltas), feed_delta),
        "embedding": Target(unreadable, [msgspec.json.encode(embedding)], feed_embedding),
        "vectors": Target((EngineFailed,), plain([*encode_vectors(vectors, is_own=False)]), feed_vectors),
        "text.request": Target(unreadable, [msgspec.json.encode(one) for one in (own_chat, openai)], feed_text_request),
        "text": Target((EngineFailed,), plain(chunks), feed_text),
        "etcd.watch": Target((ValueError,), [watch], feed_watch),
        "etcd.range": Target((ValueError,), [found], feed_found),
        "etcd.lease": Target((ValueError,), [life], feed_lease),
        "events.msgpack": Target((EventError,), [encode_changes(1, 2, changes)], feed_events),
        "address": Target((ValueError,), [b"127.0.0.1:80", b"[::1]:65535"], feed_address),
        "late": Target((), [b"1700000000.123"], feed_late),
    }


def mutated(mutator: Mutator, name: str, seed: Any) -> Any:
    """Half of what is JSON or MessagePack is changed as a tree, the rest as bytes."""
    if not isinstance(seed, bytes):
        return mutator.tree(seed)
    codec: Any = msgspec.msgpack if name.endswith("msgpack") else msgspec.json
    if mutator.rng.random() < 0.5 and name not in ("frame", "frames", "address", "late"):
        return codec.encode(mutator.tree(codec.decode(seed)))
    return mutator.bytes(seed)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num", SIZES)
def test_decoders_raise_what_they_say_or_give_what_is_right(num: int) -> None:
    mutator = Mutator(5)
    all_targets = targets()
    for target in all_targets.values():
        for seed in target.seeds:
            target.push(seed)
        assert target.num_refused == 0
    turns = [(name, target) for name, target in all_targets.items()]
    process = psutil.Process()
    start = 0
    for number in range(num):
        name, target = turns[number % len(turns)]
        target.push(mutated(mutator, name, mutator.rng.choice(target.seeds)))
        if number == num // 5:
            gc.collect()
            start = process.memory_info().rss
    gc.collect()
    assert process.memory_info().rss - start < _LEAK_BYTES
    refused = {name: target.num_refused for name, target in all_targets.items()}
    taken = {name: target.num_taken for name, target in all_targets.items()}
    print(f"\n{num} inputs; refused {refused}; taken (and right) {taken}")
    assert all(count > num // 200 for name, count in refused.items() if name != "late")


@pytest.mark.parametrize(
    "name", ["instance", "card", "request.json", "request.msgpack", "events.msgpack", "etcd.range", "etcd.watch"]
)
def test_what_is_nested_too_deeply_is_refused(name: str) -> None:
    target = targets()[name]
    deep = deep_msgpack() if name.endswith("msgpack") else deep_json()
    target.num_refused = 0
    for data in (deep, *(seed[:-1] + b"," + b'"x":' + deep for seed in target.seeds)):
        target.push(data)
    assert target.num_taken == 0


def test_a_frame_is_taken_only_with_its_checksum() -> None:
    """Every one-bit change of a frame is seen, but those of the lengths that make it unfinished."""
    good = encode_frame(b'{"id":"x"}', b"some body")
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            decode_frame(bytes(data))
