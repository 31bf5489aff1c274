"""A card travels with its files; what does not match its checksum is not used. Routing finds what is cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from model_cards.resolve import resolve
from model_cards.tokenizer import load_tokenizer
from runner.net.answers import open_response
from runner.net.block_hashes import block_hashes
from runner.net.card_files import CardFile, CardServer, fetch_card, read_own_card
from runner.net.records import RecordError
from runner.net.responses import CallHome, StreamRefused
from runner.net.routing import Router
from runner.types import EngineInfo


async def test_an_ingress_needs_no_copy_of_the_model(tmp_path: Path) -> None:
    card = resolve("demo")
    server = CardServer(card, EngineInfo(name="mocker", capabilities=("seed",)))
    sent = await server.start("127.0.0.1")
    try:
        own = read_own_card(msgspec.json.decode(msgspec.json.encode(sent)))
        assert own is not None and own.info.capabilities == ("seed",)
        got = await fetch_card(own, tmp_path)
        assert got.path is None and got.tokenizer is not None and got.mdcsum == card.mdcsum
        assert Path(got.tokenizer.path).is_relative_to(tmp_path)
        assert load_tokenizer(got).encode("Hello, world") == load_tokenizer(card).encode("Hello, world")
        (name, file), *_ = own.files.items()
        wrong = msgspec.structs.replace(own, files={name: msgspec.structs.replace(file, blake3="00")})
        with pytest.raises(RecordError, match="does not match its checksum"):
            await fetch_card(wrong, tmp_path)
        outside = msgspec.structs.replace(own, files={"../x": CardFile(url=file.url, blake3="00", size=1)})
        with pytest.raises(RecordError, match="which is not taken"):
            await fetch_card(outside, tmp_path)
    finally:
        await server.close()
    with pytest.raises(RecordError, match=r"cannot be fetched from http:\S+: Cannot connect to host"):
        await fetch_card(own, tmp_path / "later")


def test_a_card_of_another_is_not_ours_and_a_bad_one_is_named() -> None:
    assert read_own_card({"display_name": "x"}) is None
    with pytest.raises(RecordError, match="another version of llmrun"):
        read_own_card({"user_data": {"llmrun": {"card": 5}}})


async def test_an_error_in_the_middle_is_an_error_not_an_end() -> None:
    home = CallHome("127.0.0.1")
    await home.start()
    stream = home.expect("msgpack")
    info = msgspec.json.decode(home.connection_info(stream, "r")["info"])
    writer = await open_response(info, "msgpack")
    await writer.accept()
    await writer.fail("out of memory")
    with pytest.raises(StreamRefused, match="out of memory"):
        await stream.opened(2)
        await stream.take(2)
    stream.close()
    await writer.close()
    await home.close()


class Worker:
    def __init__(self, number: int) -> None:
        self.id, self.num_running, self.unread_blocks = number, 0, 0


def test_modes() -> None:
    workers: list[Any] = [Worker(number) for number in range(3)]
    assert [Router("round-robin").pick(workers, [1])] == [0]
    one = Router("round-robin")
    assert [one.pick(workers, [1]) for _ in range(4)] == [0, 1, 2, 0]
    workers[0].num_running = workers[2].num_running = 5
    assert Router("least-loaded").pick(workers, [1]) == 1
    assert Router("random").pick(workers, [1]) in range(3)


def test_kv_goes_where_the_prefix_is_until_that_worker_has_too_much_to_do() -> None:
    workers: list[Any] = [Worker(number) for number in range(4)]
    router = Router("kv", block_size=16)
    prefix = list(range(160))
    home = router.pick(workers, prefix)
    assert {router.pick(workers, [*prefix, *range(n, n + 20)]) for n in range(10)} == {home}
    workers[home].unread_blocks = 50
    assert router.pick(workers, [*prefix, 1]) != home
    router.forget(workers[home].id)
    assert len(block_hashes(prefix, 16)) == 10
    assert block_hashes(prefix[:32], 16) == block_hashes(prefix, 16)[:2]
    assert block_hashes([9, *prefix], 16)[1] != block_hashes(prefix, 16)[1]
