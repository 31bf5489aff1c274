"""Mixed load for half an hour: verified chats, slow readers, cancels, bad requests, against the demo model.

Every finished chat is compared with the model's known answer. Memory is sampled all the way; its slope after the first
third says whether something leaks. At the end every slot must answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.row import Row
from benchmarks.servers import Server, llmrun
from benchmarks.settings import Settings
from model_cards import presets
from runner.bench.client import HttpTarget
from runner.bench.load import closed_loop
from runner.bench.load import run as run_loop
from runner.bench.records import BenchRequest

SLOTS = 8
SLOPE_BAR_MB_PER_HOUR = 20.0
STUCK_BAR_S = 2.0
BAD_BODIES: tuple[bytes, ...] = (
    b"{not json",
    b"[]",
    b'{"model": "demo"}',
    b'{"messages": []}',
    b'{"messages": [{"role": "nobody", "content": "x"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e99}',
    b'{"messages": [{"role": "user", "content": "x"}], "stop": 7}',
    b'{"messages": [{"role": "user", "content": "' + b"long " * 20_000 + b'"}]}',
)


@dataclass
class Tally:
    """What happened; counted by the workers."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    launcher_mb: list[tuple[float, float]] = field(default_factory=list)
    child_mb: list[tuple[float, float]] = field(default_factory=list)


def measure(settings: Settings) -> list[Row]:
    """Four rows."""
    limits = ["--max-running", str(SLOTS), "--context-length", "2048", "--threads", str(settings.threads)]
    with llmrun(settings, "demo", *limits) as server:
        tally = run_loop(_soak(server, settings.soak_s))
        stuck_s, errors = run_loop(_use_all_slots(server))
    return [
        _wrong_row(tally, settings.soak_s),
        _slope_row("launcher", tally.launcher_mb),
        _slope_row("engine child", tally.child_mb),
        Row(
            what=f"all {SLOTS} slots answer at the end",
            ours=f"{stuck_s:.2f} s, {len(errors)} errors",
            bar=f"<= {STUCK_BAR_S:g} s, no error",
            is_met=stuck_s <= STUCK_BAR_S and not errors,
            notes=errors[:3],
        ),
    ]


def known_answers() -> list[dict[str, Any]]:
    """The demo model's chats with their greedy answers (conformance.json)."""
    path = Path(presets.__file__).parent / "demo" / "conformance.json"
    return [case for case in json.loads(path.read_text(encoding="utf-8"))["cases"] if "messages" in case]


async def _soak(server: Server, seconds: float) -> Tally:
    tally, cases = Tally(), known_answers()
    end = time.monotonic() + seconds
    workers = [_chats(server, cases, tally, end, seed) for seed in range(SLOTS + 4)]
    workers += [_cancels(server, cases, tally, end, seed) for seed in range(3)]
    workers += [_slow(server, cases, tally, end, seed) for seed in range(3)]
    workers += [_bad(server, tally, end), _watch(server, tally, end)]
    await asyncio.gather(*workers)
    return tally


async def _chats(server: Server, cases: list[dict[str, Any]], tally: Tally, end: float, seed: int) -> None:
    """Chats to their end, each compared with the known answer. A short pause keeps the machine usable."""
    rng = random.Random(seed)
    target = HttpTarget(server.url, keep_text=True, timeout_s=120, extra={"ignore_eos": None})
    await target.prepare()
    while time.monotonic() < end:
        case = rng.choice(cases)
        sample = await target.run(BenchRequest(messages=case["messages"], max_tokens=512))
        if sample.error is not None:
            tally.wrong.append(f"error: {sample.error}")
        elif sample.text != case["text"] or sample.finish != "stop":
            tally.wrong.append(f"got {sample.text!r} ({sample.finish}), known {case['text']!r}")
        tally.counts["chats"] += 1
        await asyncio.sleep(rng.random() * 0.2)
    await target.close()


async def _cancels(server: Server, cases: list[dict[str, Any]], tally: Tally, end: float, seed: int) -> None:
    """Clients that go away in mid-answer."""
    rng = random.Random(seed)
    target = HttpTarget(server.url)
    await target.prepare()
    while time.monotonic() < end:
        request = BenchRequest(messages=rng.choice(cases)["messages"], max_tokens=1500)
        task = asyncio.create_task(target.run(request))
        await asyncio.sleep(rng.random() * 0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        tally.counts["cancels"] += 1
    await target.close()


async def _slow(server: Server, cases: list[dict[str, Any]], tally: Tally, end: float, seed: int) -> None:
    """Readers that take a few bytes at a time from a small buffer; what they got must still be whole."""
    rng = random.Random(seed)
    while time.monotonic() < end:
        case = rng.choice(cases)
        body = json.dumps({"messages": case["messages"], "max_tokens": 512, "temperature": 0, "stream": True})
        data = await _read_slowly(server, body.encode(), pause_s=0.02)
        if b"[DONE]" not in data:
            tally.wrong.append(f"a slow reader's stream has no end: {data[-200:]!r}")
        tally.counts["slow readers"] += 1


async def _read_slowly(server: Server, body: bytes, pause_s: float) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2048)
    try:
        writer.write(_request(body))
        parts = []
        while part := await reader.read(256):
            parts.append(part)
            await asyncio.sleep(pause_s)
        return b"".join(parts)
    finally:
        writer.close()


async def _bad(server: Server, tally: Tally, end: float) -> None:
    """Requests that must be refused with a 4xx and an error object."""
    turn = 0
    while time.monotonic() < end:
        body = BAD_BODIES[turn % len(BAD_BODIES)]
        turn += 1
        data = await _read_slowly(server, body, pause_s=0.0)
        status = data[9:12].decode(errors="replace")
        if not status.startswith("4") or b'"error"' not in data:
            tally.wrong.append(f"a bad request ({body[:60]!r}) got {data[:200]!r}")
        tally.counts["bad requests"] += 1
        await asyncio.sleep(0.2)


def _request(body: bytes) -> bytes:
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _watch(server: Server, tally: Tally, end: float) -> None:
    begin, child = time.monotonic(), processes.engine_child(server.process.pid)
    while time.monotonic() < end:
        now = time.monotonic() - begin
        tally.launcher_mb.append((now, processes.rss_mb(server.process.pid)))
        tally.child_mb.append((now, processes.rss_mb(child)))
        await asyncio.sleep(min(5.0, max(0.5, (end - begin) / 200)))


async def _use_all_slots(server: Server) -> tuple[float, list[str]]:
    target = HttpTarget(server.url, timeout_s=30)
    await target.prepare()
    begin = time.perf_counter()
    samples = await closed_loop(target, iter([BenchRequest(prompt="hi", max_tokens=4)] * SLOTS), SLOTS)
    await target.close()
    errors = [sample.error for sample in samples if sample.error is not None]
    return max(sample.end_s for sample in samples) - begin, errors


def slope_per_hour(points: list[tuple[float, float]]) -> float:
    """Least-squares slope of (seconds, MB) after the first third, in MB an hour; 0 of fewer than three points."""
    late = points[len(points) // 3 :]
    if len(late) < 3:
        return 0.0
    mean_t = sum(t for t, _ in late) / len(late)
    mean_y = sum(y for _, y in late) / len(late)
    spread = sum((t - mean_t) ** 2 for t, _ in late)
    return 3600 * sum((t - mean_t) * (y - mean_y) for t, y in late) / spread


def _wrong_row(tally: Tally, seconds: float) -> Row:
    length = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
    done = ", ".join(f"{count:,} {name}" for name, count in sorted(tally.counts.items()))
    return Row(
        what=f"{length} of mixed load: wrong answers",
        ours=f"{len(tally.wrong)} wrong ({done})",
        bar="0 wrong",
        is_met=not tally.wrong and tally.counts["chats"] > 0,
        notes=tally.wrong[:5],
    )


def _slope_row(who: str, points: list[tuple[float, float]]) -> Row:
    slope = slope_per_hour(points)
    late = [y for _, y in points[len(points) // 3 :]] or [0.0]
    growth = max(late) - min(late)
    return Row(
        what=f"memory of the {who}, slope after the first third",
        ours=f"{slope:+.1f} MB/h",
        bar=f"<= {SLOPE_BAR_MB_PER_HOUR:g} MB/h (or within 5 MB in all)",
        is_met=slope <= SLOPE_BAR_MB_PER_HOUR or growth <= 5.0,
        notes=[f"{who}: {late[0]:.0f} to {late[-1]:.0f} MB, {len(points)} samples"],
    )
