"""CORS in a real browser: a page of one origin calls the API of another one by `fetch`."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.runner.frontends.http_server import running

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here"),
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=20000",
    "--dump-dom",
]
PAGE = (Path(__file__).parent / "browser_page.html").read_text()


async def visit(url: str, profile: Path) -> dict[str, Any]:
    """What the page's script saw."""
    process = await asyncio.create_subprocess_exec(
        "chromium", *FLAGS, f"--user-data-dir={profile}", url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 90)
    found = re.search(r'<pre id="result">(.*?)</pre>', output.decode(), re.DOTALL)
    assert found is not None and found[1], output.decode()[:500]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen


def free_port() -> int:
    """The page's origin has to be known before either server starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("is_allowed", [True, False])
async def test_a_page_of_another_origin(is_allowed: bool, tmp_path: Path) -> None:
    port = free_port()
    allowed = f"http://localhost:{port}" if is_allowed else "http://localhost:1"
    async with running(api_key=("k",), cors_origins=(allowed,)) as server:
        body = PAGE.replace("URL", server.url).replace("KEY", "k")
        seen = await _serve_and_visit(body, port, tmp_path)
    if is_allowed:
        assert seen == {
            "model": "toy", "requestId": True, "pieces": "one two three", "isDone": True, "wrongKey": 401,
        }  # fmt: skip
    else:
        assert "Failed to fetch" in seen["error"]


async def _serve_and_visit(body: str, port: int, profile: Path) -> dict[str, Any]:
    async def page(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return await visit(f"http://localhost:{port}/", profile)
    finally:
        await runner.cleanup()
