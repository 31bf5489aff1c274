"""Workers that do not fit, beside one that does: each is left out with a reason and a next step; the rest serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from runner import __version__
from runner.net.addresses import Address
from runner.net.card_files import CardServer
from runner.net.folder import FolderStore
from runner.net.records import (
    Instance,
    RecordError,
    card_key,
    decode_instance,
    encode_card,
    encode_instance,
    instance_keys,
)
from runner.remote_cards import read_card
from runner.types import EngineInfo
from tests.runner.fakes import make_card
from tests.runner.net.cluster import Cluster

POOL = Address("ns", "pool", "gen")


def _record(instance_id: int, **changes: Any) -> bytes:
    instance = Instance(address=POOL, id=instance_id, plane="tcp", target="127.0.0.1:9/x")
    return msgspec.json.encode({**msgspec.json.decode(encode_instance(instance)[0]), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"request_plane_codec": "cbor"}, "the worker wants the codec 'cbor'; json and msgpack are known here"),
        (
            {"transport": {"quic": "127.0.0.1:9"}},
            "takes requests over 'quic'; tcp and nats_tcp are known here. Start it",
        ),
        ({"transport": {"tcp": "127.0.0.1:9", "quic": "x"}}, "one address is wanted. It may be newer: update llmrun"),
        ({"transport": None}, "its transport is None; one address is wanted"),
    ],
)
def test_a_worker_of_an_unknown_protocol(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError) as caught:
        decode_instance("v1/instances/ns/pool/gen/5", _record(5, **changes))
    assert message in str(caught.value) and str(caught.value).startswith("v1/instances/ns/pool/gen/5: ")


async def _card_json(tmp_path: Path, **fields: object) -> dict[str, Any]:
    server = CardServer(make_card(tmp_path, **fields), EngineInfo(name="x", context_length=512))
    card_json: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(await server.start("127.0.0.1")))
    await server.close()
    return card_json


async def test_a_card_of_another_version_says_both_versions(tmp_path: Path) -> None:
    card_json = await _card_json(tmp_path)
    own = card_json["user_data"]["llmrun"]
    own["version"] = "9.1"
    for change, why in (
        ({"card": own["card"].replace("llmrun-card-1", "llmrun-card-2")}, "it has format 'llmrun-card-2'"),
        ({"card": own["card"].replace('"name"', '"title"')}, "is not a valid model card"),
        ({"info": {"kind": "x"}}, "Object missing required field `name`"),
        ({"files": []}, "Expected `object`"),
    ):
        card_json["user_data"]["llmrun"] = {**own, **change}
        with pytest.raises(RecordError) as caught:
            await read_card(card_json, None, tmp_path)
        message = str(caught.value)
        assert f"its card is of llmrun 9.1 and cannot be read by {__version__}" in message and why in message
        assert "run one version on both sides" in message


async def test_a_model_named_at_the_ingress_that_is_another_one(tmp_path: Path) -> None:
    card_json = await _card_json(tmp_path)
    given = make_card(tmp_path, name="other", vocab_size=31)
    with pytest.raises(RecordError, match=r"other, which is named here, has 31 tokens, the worker's toy has 2\d\d"):
        await read_card(card_json, given, tmp_path)


async def test_those_that_do_not_fit_are_said_and_the_others_serve(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    async with Cluster(tmp_path) as cluster:
        await cluster.worker("out=echo_core", "demo", "--model-name", "same")
        ingress = await cluster.ingress()
        await cluster.worker("out=echo_core", "demo", "--model-name", "same", "--context-length", "128")
        await ingress.until(
            "is not used: its context is 128, the others have 2,048; start it with --context-length 2048"
        )
        lease = await store.lease()
        await lease.put(instance_keys(POOL, lease.id)[0], _record(lease.id, request_plane_codec="cbor"))
        await ingress.until("the worker wants the codec 'cbor'")
        newer = await store.lease()
        card_json = await _card_json(tmp_path)
        card_json["user_data"]["llmrun"] |= {"version": "9.1", "card": '{"format":"llmrun-card-2"}'}
        await newer.put(card_key(POOL, newer.id), encode_card(POOL, newer.id, card_json))
        await newer.put(instance_keys(POOL, newer.id)[0], _record(newer.id))
        await ingress.until("is not used: its card is of llmrun 9.1 and cannot be read by")
        assert (await cluster.complete([300, 301], 2))[1] == ""
    await store.close()
