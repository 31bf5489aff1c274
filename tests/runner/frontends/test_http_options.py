"""What is checked before serving: keys, addresses, TLS files, ports."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runner.catalog import Catalog
from runner.errors import LlmrunError, UsageError
from runner.frontends.base import FrontendSpec
from runner.frontends.http import HttpFrontend
from runner.frontends.http.listen import bind, is_loopback
from runner.frontends.http.server import Stop, serve
from runner.frontends.http.state import State
from runner.frontends.http.tls import load_tls
from runner.options import RunOptions
from tests.runner.frontends.http_server import CHAT, running
from tests.runner.frontends.scripted import ScriptedService


def make(argument: str = "", **options: Any) -> HttpFrontend:
    return HttpFrontend(FrontendSpec(name="http", argument=argument, options=RunOptions(**options)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_a_public_address_needs_a_key_or_a_word(host: str) -> None:
    with pytest.raises(UsageError, match="--insecure"):
        make(http_host=host)
    make(http_host=host, insecure=True)
    make(http_host=host, api_key=("k",))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)
    make(http_host=host)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"http_port": 70000}, "--http-port"),
        ({"http_host": "no such host"}, "--http-host"),
        ({"http_workers": 0}, "--http-workers"),
        ({"api_key": ("",)}, "--api-key"),
        ({"api_key": ("kéy",)}, "ASCII"),
        ({"api_key_file": "/nowhere/keys"}, "cannot be read"),
        ({"tls_cert_path": "cert.pem"}, "go together"),
        ({"tls_cert_path": "/nowhere/c", "tls_key_path": "/nowhere/k"}, "--tls-cert-path"),
        ({"request_template": "/nowhere/t"}, "--request-template"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make(**options)


def test_an_argument_is_refused() -> None:
    with pytest.raises(UsageError, match="--http-port"):
        make("8080")


async def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# keys\n\n  first \nsecond\n")
    async with running(api_key_file=str(path)) as server:
        assert (await server.get("/v1/models", headers={"x-api-key": "first"}))[0] == 200
        assert (await server.get("/v1/models", headers={"x-api-key": "# keys"}))[0] == 401
    path.write_text("# none\n")
    with pytest.raises(UsageError, match="no key"):
        make(api_key_file=str(path))


def test_a_port_in_use_is_named() -> None:
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    try:
        with pytest.raises(LlmrunError, match=f"port {port} .*--http-port") as caught:
            bind("127.0.0.1", port)
        assert not isinstance(caught.value, UsageError)
    finally:
        first.close()
    bind("127.0.0.1", port).close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl here")
    return cert, key


async def test_tls(certificate: tuple[Path, Path]) -> None:

    cert, key = certificate
    options = RunOptions(tls_cert_path=str(cert), tls_key_path=str(key))
    catalog = Catalog()
    catalog.add(ScriptedService())
    sock, stop, ready = bind("127.0.0.1", 0), Stop(), asyncio.Event()
    url = f"https://127.0.0.1:{sock.getsockname()[1]}"
    state = State(catalog, options)
    task = asyncio.create_task(serve(state, sock, stop, tls=load_tls(options), on_ready=ready.set))
    await ready.wait()
    trust = ssl.create_default_context(cafile=str(cert))
    asked = {**CHAT, "stream": True}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{url}/v1/chat/completions", json=asked, ssl=trust) as response,
    ):
        assert (await response.text()).endswith("data: [DONE]\n\n")
    stop.ask()
    await task


def test_tls_files_that_are_none(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    (tmp_path / "junk").write_text("junk")
    for pair in ((tmp_path / "junk", key), (cert, tmp_path / "junk"), (key, cert)):
        with pytest.raises(UsageError, match="TLS"):
            make(tls_cert_path=str(pair[0]), tls_key_path=str(pair[1]))
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", str(key), "-aes256", "-passout", "pass:secret", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    with pytest.raises(UsageError, match="encrypted"):
        make(tls_cert_path=str(cert), tls_key_path=str(locked))
