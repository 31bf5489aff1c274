"""KV events: the bytes of Dynamo 1.6.1's mocker, from a publisher to a router, and what a gap does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from runner.net.addresses import Address
from runner.net.block_events import BlockChange, EventError, decode_changes, encode_changes, subjects
from runner.net.block_hashes import BlockNames, block_hashes, chain, tokens_hashes
from runner.net.block_index import BlockIndex
from runner.net.block_listener import BlockListener
from runner.net.block_publisher import BlockPublisher
from runner.net.routing import Router

ADDRESS = Address("ns", "pool", "gen")
PROMPT = list(range(300, 340))
SEEN = {
    "publisher_id": 162501762277449,
    "sequence": 0,
    "published_at": 1795603877106,
    "topic": "kv-events",
    "payload": [
        {
            "worker_id": 1756863529266616325,
            "storage_tier": "device",
            "residency_domain": "worker",
            "event": {
                "event_id": 1,
                "data": {
                    "stored": {
                        "parent_hash": None,
                        "start_position": None,
                        "blocks": [
                            {
                                "block_hash": 16394733772155227027,
                                "tokens_hash": 16394733772155227027,
                                "mm_extra_info": None,
                            },
                            {
                                "block_hash": 16788940126551259901,
                                "tokens_hash": 792990987059070094,
                                "mm_extra_info": None,
                            },
                        ],
                    }
                },
                "dp_rank": 0,
            },
        }
    ],
}
"""Of ai-dynamo 1.6.1's mocker, --block-size 16, after PROMPT."""


@dataclass
class One:
    id: int
    num_running: int = 0
    unread_blocks: int = 0


def packed(envelope: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode({**envelope, "payload": msgspec.msgpack.encode(envelope["payload"])})


def test_dynamos_bytes_and_dynamos_hashes() -> None:
    (change,) = decode_changes(packed(SEEN))
    assert (change.worker_id, change.event_id, change.kind) == (1756863529266616325, 1, "stored")
    assert [one for one, _ in change.blocks] == block_hashes(PROMPT, 16)
    assert [one for _, one in change.blocks] == tokens_hashes(PROMPT, 16)
    ours = msgspec.msgpack.decode(encode_changes(162501762277449, 0, [change]))
    payload = msgspec.msgpack.decode(ours["payload"])
    payload[0]["event"]["data"]["stored"]["blocks"] = [
        {**block, "mm_extra_info": None} for block in payload[0]["event"]["data"]["stored"]["blocks"]
    ]
    assert payload == SEEN["payload"] and set(ours) == set(SEEN)
    one = packed({**SEEN, "payload": SEEN["payload"][0]})  # type: ignore[index]
    assert decode_changes(one) == [change], "1.0 sends one at a time"
    assert subjects(ADDRESS) == (
        "namespace.ns.component.pool.endpoint.gen.kv-events",
        "namespace.ns.component.pool.kv-events",
    )


@pytest.mark.parametrize(
    "change",
    [
        BlockChange(7, 1, "stored", 5, [(1, 2), (2**64 - 1, 0)]),
        BlockChange(2**64 - 1, 2, "removed", removed=[1, 2**64 - 1]),
        BlockChange(7, 3, "cleared", rank=3),
    ],
)
def test_there_and_back(change: BlockChange) -> None:
    assert decode_changes(encode_changes(1, 0, [change])) == [change]


def test_what_is_no_event_is_refused_and_other_memories_do_not_count() -> None:
    event = {"event_id": 1, "data": "cleared", "dp_rank": 0}
    host = {**SEEN, "payload": [{"worker_id": 1, "storage_tier": "host_pinned", "event": event}]}
    assert decode_changes(packed(host)) == []
    for data in ("evicted", {}, {"stored": {"blocks": [{"block_hash": -1, "tokens_hash": 1}]}}, 5):
        wrong = {**SEEN, "payload": [{"worker_id": 1, "event": {**event, "data": data}}]}
        with pytest.raises(EventError):
            decode_changes(packed(wrong))
    for junk in (b"", b"\xc1", packed({**SEEN, "payload": 5})):
        with pytest.raises(EventError):
            decode_changes(junk)


def test_names_of_an_engine_become_block_hashes() -> None:
    names, hashes = BlockNames(100), tokens_hashes(PROMPT, 16)
    assert names.stored(None, [(b"a", hashes[0])]) == block_hashes(PROMPT, 16)[:1]
    assert names.stored(b"a", [(b"b", hashes[1])]) == block_hashes(PROMPT, 16)[1:]
    assert names.stored(b"nobody", [(b"c", 1)]) == []
    assert names.removed([b"b", b"never"]) == block_hashes(PROMPT, 16)[1:]
    assert names.removed([b"b"]) == []


def test_names_that_are_numbers_stand_for_themselves_until_one_does_not() -> None:
    names = BlockNames(100)
    assert names.stored(5, [(chain(5, 6), 6)]) == [chain(5, 6)]
    assert names.removed([9]) == [9]
    assert names.stored(None, [(1000, 6)]) == [6]
    assert names.stored(1000, [(1001, 7)]) == [chain(6, 7)]
    assert names.stored(77, [(1002, 7)]) == []
    assert names.removed([1001, 77]) == [chain(6, 7)]


def test_the_index_is_bounded_and_keeps_what_was_used_last() -> None:
    index = BlockIndex(max_blocks=10)
    index.add(1, range(8), 1)
    index.add(2, range(4), 2)
    index.add(2, range(100, 106), 3)
    assert len(index) == 10 and index.overlaps(range(8), [1, 2]) == [4, 4]
    index.forget(2)
    assert len(index) == 4 and index.num_held(2) == 0


class Wire:
    """A publisher, a listener and a router, and the messages between them in our hands."""

    def __init__(self) -> None:
        self.publisher = BlockPublisher("nats://127.0.0.1:1", ADDRESS, 7)
        self.listener = BlockListener("nats://127.0.0.1:1")
        self.router, self.worker = Router("kv", block_size=16), One(7)
        self.listener.add(ADDRESS, 7, self.router)

    def carry(self) -> None:
        changes = self.publisher._waiting[:]
        self.publisher._waiting.clear()
        self.listener.take(encode_changes(1, 0, changes))

    def overlap(self, prompt: list[int]) -> int:
        """What the router believes; the prompt is sent."""
        self.router.pick([self.worker], prompt)
        assert self.router.last is not None
        self.router.settle(self.router.last)
        return self.router.last.overlap

    def miss(self, prompt: list[int]) -> None:
        """The prompt is sent, and the worker says that it had nothing of it."""
        self.router.pick([self.worker], prompt)
        assert self.router.last is not None
        self.router.correct(self.router.last, 0)
        self.router.settle(self.router.last)


async def test_a_router_knows_what_others_sent_to_a_worker() -> None:
    wire = Wire()
    wire.publisher.cleared()
    wire.publisher.stored([b"a", b"b"], b"", PROMPT[:32])
    wire.publisher.stored([b"c"], b"b", [9] * 16)
    wire.carry()
    assert wire.overlap([*PROMPT[:32], *[9] * 16]) == 3
    wire.publisher.removed([b"b"])
    wire.carry()
    assert wire.overlap(PROMPT) == 1
    wire.publisher.cleared()
    wire.carry()
    assert wire.overlap(PROMPT) == 0


async def test_a_worker_that_tells_all_is_believed_and_one_that_was_missed_is_corrected() -> None:
    wire = Wire()
    wire.publisher.cleared()
    wire.carry()
    for number in (1, 2):
        assert wire.overlap([number] * 64) == 0
    wire.miss([2] * 64)
    assert wire.overlap([1] * 64) == 4, "that it had thrown 1 away it would have said"
    assert wire.overlap([2] * 64) == 4
    wire.publisher.stored([b"x"], b"", [5] * 16)
    wire.publisher._waiting.clear()  # this one is lost
    wire.publisher.removed([b"x"])
    wire.carry()
    wire.miss([2] * 64)
    assert wire.overlap([1] * 64) == 0, "caches keep what was used last, and 2 was used after 1"


async def test_strangers_and_junk_change_nothing() -> None:
    wire = Wire()
    wire.listener.take(b"junk")
    wire.listener.take(encode_changes(1, 0, [BlockChange(8, 1, "stored", None, [(1, 1)])]))
    assert wire.listener.num_changes == 0
    wire.listener.remove(7)
    wire.publisher.cleared()
    wire.carry()
    assert wire.listener.num_changes == 0


async def test_while_nats_is_away_events_do_not_pile_up() -> None:
    publisher = BlockPublisher("nats://127.0.0.1:1", ADDRESS, 7)
    for _ in range(25_000):
        publisher.cleared()
    assert len(publisher._waiting) <= 10_000
    assert publisher._waiting[-1].event_id == 25_000
