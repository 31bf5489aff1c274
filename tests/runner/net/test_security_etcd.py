"""Users and TLS against a real etcd that has them: let in, or told clearly why not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runner.net.credentials import read_etcd_login
from runner.net.etcd import EtcdStore
from runner.net.store import StoreRefused, StoreUnavailable
from tests.runner.net import daemons
from tests.runner.net.certificates import Authority
from tests.runner.net.conftest import SECRET, setenv

pytestmark = pytest.mark.dist


async def etcd_works(url: str) -> None:
    store = EtcdStore((url,), login=read_etcd_login())
    try:
        await store.check("v1/")
        lease = await store.lease()
        await lease.put("v1/key", b"value")
        assert [entry.key for entry in await store.entries("v1/")] == ["v1/key"]
    finally:
        await store.close()


async def etcd_refused(url: str, kind: type[StoreUnavailable] = StoreRefused) -> str:
    store = EtcdStore((url,), login=read_etcd_login())
    try:
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailable) as caught:
                await store.check("v1/")
    finally:
        await store.close()
    assert type(caught.value) is kind, caught.value
    assert SECRET not in str(caught.value) and SECRET not in repr(caught.value)
    return str(caught.value)


async def test_etcd_users(guarded_etcd: daemons.Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"127.0.0.1:{guarded_etcd.port}"
    url = f"http://{where}"
    assert "wants a user: ETCD_AUTH_USERNAME and ETCD_AUTH_PASSWORD" in await etcd_refused(url)
    setenv(monkeypatch, ETCD_AUTH_USERNAME="me", ETCD_AUTH_PASSWORD=f"{SECRET}x")
    assert "refuses the user 'me' with its password" in await etcd_refused(url)
    setenv(monkeypatch, ETCD_AUTH_USERNAME="nobody", ETCD_AUTH_PASSWORD=SECRET)
    assert "does not let the user 'nobody' use the keys" in await etcd_refused(url)
    setenv(monkeypatch, ETCD_AUTH_USERNAME="me")
    await etcd_works(url)
    for name in ("ETCD_AUTH_USERNAME", "ETCD_AUTH_PASSWORD"):
        monkeypatch.delenv(name)
    await etcd_works(f"http://me:{SECRET}@{where}")
    assert f"etcd at {url} refuses the user 'me'" in await etcd_refused(f"http://me:{SECRET}x@{where}")


async def test_a_token_of_etcd_that_is_not_taken_any_more_is_replaced(
    guarded_etcd: daemons.Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    setenv(monkeypatch, ETCD_AUTH_USERNAME="me", ETCD_AUTH_PASSWORD=SECRET)
    store = EtcdStore((f"http://127.0.0.1:{guarded_etcd.port}",), login=read_etcd_login())
    await store.check("v1/")
    store._token = "old.1"  # as after a restart of etcd, whose simple tokens are in its memory
    await store.check("v1/")
    assert store._token not in (None, "old.1")
    await store.close()


async def test_etcd_with_tls(
    tmp_path: Path, authority: Authority, stranger: Authority, server: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cert, key = server
    daemon = daemons.etcd(tmp_path / "etcd", tls=["--cert-file", str(cert), "--key-file", str(key)])
    daemon.start()
    where = f"127.0.0.1:{daemon.port}"
    try:
        said = await etcd_refused(f"https://{where}")
        assert "its certificate is not trusted" in said and "ETCD_AUTH_CA=FILE" in said
        assert "https:// with it" in await etcd_refused(f"http://{where}", StoreUnavailable)
        setenv(monkeypatch, ETCD_AUTH_CA=stranger.cert)
        assert "its certificate is not trusted" in await etcd_refused(f"https://{where}")
        for value in (authority.cert, authority.cert.read_text()):  # a path, or the text: Dynamo's client takes that
            setenv(monkeypatch, ETCD_AUTH_CA=value)
            await etcd_works(f"https://{where}")
            await etcd_works(where)
    finally:
        daemon.kill()


async def test_etcd_with_client_certificates(
    tmp_path: Path, authority: Authority, stranger: Authority, server: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cert, key = server
    flags = ["--cert-file", str(cert), "--key-file", str(key), "--client-cert-auth", "--trusted-ca-file"]
    daemon = daemons.etcd(tmp_path / "etcd", tls=[*flags, str(authority.cert)])
    daemon.start()
    url = f"https://127.0.0.1:{daemon.port}"
    try:
        setenv(monkeypatch, ETCD_AUTH_CA=authority.cert)
        assert "ETCD_AUTH_CLIENT_CERT and ETCD_AUTH_CLIENT_KEY name ours" in await etcd_refused(url)
        mine, its_key = stranger.issue("client", "DNS:client")
        setenv(monkeypatch, ETCD_AUTH_CLIENT_CERT=mine, ETCD_AUTH_CLIENT_KEY=its_key)
        assert "it does not accept our certificate" in await etcd_refused(url)
        mine, its_key = authority.issue("client", "DNS:client")
        for one, two in ((mine, its_key), (mine.read_text(), its_key.read_text())):
            setenv(monkeypatch, ETCD_AUTH_CLIENT_CERT=one, ETCD_AUTH_CLIENT_KEY=two)
            await etcd_works(url)
    finally:
        daemon.kill()
