"""Credentials and TLS against a real nats-server that has them: let in, or told clearly why not. And whole programs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.errors import EngineStartFailed
from runner.net.nats_connection import connect_nats
from runner.net.planes import NatsEndpoint, NatsRequests, Unreachable
from runner.net.records import Instance
from tests.runner.net import daemons
from tests.runner.net.certificates import Authority
from tests.runner.net.cluster import ADDRESS, Cluster, Program
from tests.runner.net.conftest import SECRET, setenv
from tests.runner.net.nats_keys import make_key, operator_config

pytestmark = pytest.mark.dist


class Nats:
    """A server with a configuration, which may change."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "nats.conf"
        self.daemon: daemons.Daemon

    def start(self, config: str) -> None:
        self.config.write_text(config)
        self.daemon = daemons.nats(config=self.config)
        self.daemon.start()

    def url(self, scheme: str = "nats", user: str = "") -> str:
        return f"{scheme}://{user}127.0.0.1:{self.daemon.port}"


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[Nats]:
    made = Nats(tmp_path)
    yield made
    made.daemon.kill()


async def works(url: str) -> None:
    """A request goes through it and comes back."""
    connection = await connect_nats(url)
    try:

        async def answer(message: object) -> None:
            await message.respond(b"yes")  # type: ignore[attr-defined]

        await connection.subscribe("here", cb=answer)
        assert (await connection.request("here", b"", timeout=5)).data == b"yes"
    finally:
        await connection.close()


async def refused(url: str) -> str:
    """What is said; within seconds, and without a secret."""
    async with asyncio.timeout(5):
        with pytest.raises(EngineStartFailed) as caught:
            await connect_nats(url)
    said = f"{caught.value.reason}; {caught.value.hint}"
    assert SECRET not in said and SECRET not in repr(caught.value)
    return said


async def test_nats_user_and_password(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    nats.start(f'authorization {{ user: "me", password: "{SECRET}" }}')
    said = await refused(nats.url())
    assert "wants to know who we are" in said and "NATS_AUTH_USERNAME" in said
    setenv(monkeypatch, NATS_AUTH_USERNAME="me", NATS_AUTH_PASSWORD=f"{SECRET}-wrong")
    assert "refuses NATS_AUTH_USERNAME and NATS_AUTH_PASSWORD; compare" in await refused(nats.url())
    setenv(monkeypatch, NATS_AUTH_PASSWORD=SECRET)
    await works(nats.url())


async def test_nats_user_in_the_url(nats: Nats) -> None:
    nats.start(f'authorization {{ user: "me", password: "{SECRET}" }}')
    await works(nats.url(user=f"me:{SECRET}@"))
    said = await refused(nats.url(user=f"me:{SECRET}x@"))
    assert f"NATS at {nats.url()} refuses the user in NATS_SERVER" in said


async def test_nats_token(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    nats.start(f'authorization {{ token: "{SECRET}" }}')
    setenv(monkeypatch, NATS_AUTH_TOKEN=f"{SECRET}x")
    assert "refuses NATS_AUTH_TOKEN" in await refused(nats.url())
    setenv(monkeypatch, NATS_AUTH_TOKEN=SECRET)
    await works(nats.url())


async def test_nats_nkey(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    key, other = make_key(), make_key()
    nats.start(f"authorization {{ users: [ {{ nkey: {key.public} }} ] }}")
    setenv(monkeypatch, NATS_AUTH_NKEY=other.seed)
    said = await refused(nats.url())
    assert "refuses NATS_AUTH_NKEY" in said and other.seed not in said
    setenv(monkeypatch, NATS_AUTH_NKEY=key.seed)
    await works(nats.url())


async def test_nats_credentials_file(nats: Nats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, credentials = operator_config(tmp_path)
    _, others = operator_config(tmp_path / "..")
    nats.start(config)
    path = tmp_path / "me.creds"
    setenv(monkeypatch, NATS_AUTH_CREDENTIALS_FILE=path)
    path.write_text(others)
    assert "refuses NATS_AUTH_CREDENTIALS_FILE" in await refused(nats.url())
    path.write_text(credentials)
    await works(nats.url())


async def test_the_first_credentials_given_count_in_dynamos_order(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    nats.start(f'authorization {{ user: "me", password: "{SECRET}" }}')
    setenv(monkeypatch, NATS_AUTH_USERNAME="me", NATS_AUTH_PASSWORD=SECRET, NATS_AUTH_TOKEN="other")
    await works(nats.url())


async def test_nats_with_tls(
    nats: Nats, authority: Authority, stranger: Authority, server: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = server
    nats.start(f'authorization {{ token: "{SECRET}" }}\ntls {{ cert_file: "{cert}", key_file: "{key}" }}')
    setenv(monkeypatch, NATS_AUTH_TOKEN=SECRET)
    for url in (nats.url("tls"), nats.url("nats")):  # the server wants TLS of both
        said = await refused(url)
        assert "its certificate is not trusted" in said and "NATS_TLS_CA_CERT_PATH=FILE" in said
    setenv(monkeypatch, NATS_TLS_CA_CERT_PATH=stranger.cert)
    assert "its certificate is not trusted" in await refused(nats.url("tls"))
    setenv(monkeypatch, NATS_TLS_CA_CERT_PATH=authority.cert)
    await works(nats.url("tls"))
    setenv(monkeypatch, NATS_AUTH_TOKEN="other")
    assert "refuses NATS_AUTH_TOKEN" in await refused(nats.url("tls"))
    setenv(monkeypatch, NATS_AUTH_TOKEN=SECRET, NATS_TLS_CA_CERT_PATH="", NATS_TLS_INSECURE="true")
    await works(nats.url("tls"))


async def test_a_certificate_for_another_address(
    nats: Nats, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = authority.issue("elsewhere", "IP:10.1.2.3")
    nats.start(f'tls {{ cert_file: "{cert}", key_file: "{key}" }}')
    setenv(monkeypatch, NATS_TLS_CA_CERT_PATH=authority.cert)
    assert "its certificate is not for this address" in await refused(nats.url("tls"))


async def test_nats_with_client_certificates(
    nats: Nats, authority: Authority, stranger: Authority, server: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = server
    nats.start(f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{authority.cert}", verify: true }}')
    setenv(monkeypatch, NATS_TLS_CA_CERT_PATH=authority.cert)
    said = await refused(nats.url("tls"))
    assert "NATS_TLS_CLIENT_CERT_PATH and NATS_TLS_CLIENT_KEY_PATH name ours" in said
    for issuer in (stranger, authority):
        mine, its_key = issuer.issue("client", "DNS:client")
        setenv(monkeypatch, NATS_TLS_CLIENT_CERT_PATH=mine, NATS_TLS_CLIENT_KEY_PATH=its_key)
        if issuer is stranger:
            assert "it does not accept our certificate" in await refused(nats.url("tls"))
        else:
            await works(nats.url("tls"))


async def test_no_password_goes_to_a_server_without_tls_where_tls_was_asked_for(
    nats: Nats, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    nats.start(f'authorization {{ token: "{SECRET}" }}')
    setenv(monkeypatch, NATS_AUTH_TOKEN=SECRET)
    await works(nats.url())
    assert "it has no TLS, and we were told to use it" in await refused(nats.url("tls"))
    setenv(monkeypatch, NATS_TLS_CA_CERT_PATH=authority.cert)
    assert "it has no TLS" in await refused(nats.url())


async def test_a_nats_that_is_not_there_is_told_at_once() -> None:
    assert "cannot be reached" in await refused(f"nats://127.0.0.1:{daemons.free_port()}")
    requests = NatsRequests(f"nats://me:{SECRET}@127.0.0.1:{daemons.free_port()}")
    instance = Instance(address=ADDRESS, id=5, plane="nats_tcp", target="ns_pool.gen-5")
    async with asyncio.timeout(5):
        with pytest.raises(Unreachable) as caught:
            await requests.send(instance, b"x", {})
    assert SECRET not in str(caught.value)
    await requests.close()


async def test_a_worker_that_nats_refuses_for_a_while_comes_back(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    good = f'authorization {{ user: "me", password: "{SECRET}" }}'
    nats.start(good)
    setenv(monkeypatch, NATS_AUTH_USERNAME="me", NATS_AUTH_PASSWORD=SECRET)
    endpoint = NatsEndpoint(nats.url(), lambda frame, headers: "" if frame == b"x" else "what?")
    requests = NatsRequests(nats.url())
    instance = Instance(
        address=ADDRESS, id=5, plane="nats_tcp", target=await endpoint.start(ADDRESS.subject(5)), codec="json"
    )
    await requests.send(instance, b"x", {})
    assert nats.daemon.process is not None
    for config in ('authorization { user: "me", password: "another" }', good):
        nats.config.write_text(config)
        nats.daemon.process.send_signal(1)  # SIGHUP: reload
        await asyncio.sleep(1)
    async with asyncio.timeout(10):
        while True:
            try:
                await requests.send(instance, b"x", {})
                break
            except Unreachable:
                await asyncio.sleep(0.2)
    await requests.close()
    await endpoint.close()


# the programs


async def test_worker_and_ingress_through_guarded_servers(
    nats: Nats, guarded_etcd: daemons.Daemon, authority: Authority, server: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cert, key = server
    nats.start(f'authorization {{ token: "{SECRET}" }}\ntls {{ cert_file: "{cert}", key_file: "{key}" }}')
    setenv(
        monkeypatch,
        ETCD_ENDPOINTS=f"http://127.0.0.1:{guarded_etcd.port}",
        ETCD_AUTH_USERNAME="me",
        ETCD_AUTH_PASSWORD=SECRET,
        NATS_SERVER=nats.url("tls"),
        NATS_AUTH_TOKEN=SECRET,
        NATS_TLS_CA_CERT_PATH=authority.cert,
    )
    async with Cluster(tmp_path, "--store", "etcd", "-vv") as cluster:
        await cluster.worker("out=echo_core", "demo", "--request-plane", "nats")
        await cluster.ingress()
        text, error = await cluster.complete([300, 301, 302], 3)
        assert text and error == ""
        for program in cluster.programs:
            program.process.terminate()
            assert await program.ended() == 0
            assert SECRET not in program.said and "eof_received" not in program.said


@pytest.mark.parametrize("words", [("in=dyn://a.b.c", "out=echo_core", "demo"), ("in=none", "out=dyn"), ("workers",)])
async def test_a_wrong_password_ends_a_program_at_once(
    guarded_etcd: daemons.Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    setenv(
        monkeypatch,
        ETCD_ENDPOINTS=f"http://127.0.0.1:{guarded_etcd.port}",
        ETCD_AUTH_USERNAME="me",
        ETCD_AUTH_PASSWORD=f"{SECRET}x",
    )
    program = Program([*words], tmp_path)
    try:
        assert await program.ended() == 1
        assert "refuses the user 'me' with its password (ETCD_AUTH_USERNAME, ETCD_AUTH_PASSWORD)" in program.said
        assert SECRET not in program.said and "Traceback" not in program.said
    finally:
        program.close()
