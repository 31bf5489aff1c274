"""Certificates and servers that know their users, for the tests of both stores' and planes' security."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.runner.net import daemons
from tests.runner.net.certificates import Authority

SECRET = "s3cret-of-the-test"


def setenv(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def server(authority: Authority) -> tuple[Path, Path]:
    return authority.issue("server")


@pytest.fixture
async def guarded_etcd(tmp_path: Path) -> AsyncIterator[daemons.Daemon]:
    """With users: `me` may use v1/ and instances/, `nobody` nothing."""
    daemon = daemons.etcd(tmp_path / "etcd")
    daemon.start()

    def b64(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    async with aiohttp.ClientSession() as session:

        async def call(path: str, **body: object) -> None:
            async with session.post(f"http://127.0.0.1:{daemon.port}/v3/auth/{path}", json=body) as response:
                assert response.status == 200, await response.text()

        for name in ("root", "me", "nobody"):
            await call("user/add", name=name, password=SECRET)
        for role in ("root", "dyn"):
            await call("role/add", name=role)
        for prefix, end in (("v1/", "v10"), ("instances/", "instances0")):
            perm = {"permType": "READWRITE", "key": b64(prefix), "range_end": b64(end)}
            await call("role/grant", name="dyn", perm=perm)
        await call("user/grant", user="root", role="root")
        await call("user/grant", user="me", role="dyn")
        await call("enable")
    yield daemon
    daemon.kill()
