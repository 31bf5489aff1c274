"""Minutes of random faults under constant load: every answer is right or an error, none hangs (make test-chaos).

CHAOS_S: seconds of faults, 600 unless given. CHAOS_SEED: repeats a run's faults; their moments vary.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
import time
from pathlib import Path

import aiohttp
import pytest

from model_cards.detokenizer import Detokenizer
from model_cards.resolve import resolve
from model_cards.tokenizer import load_tokenizer
from runner.net.store import LEASE_S
from tests.runner.net.chaos import Chaos
from tests.runner.net.cluster import PREFIX_ENGINE, prefix_answer

_LENGTH_S = float(os.environ.get("CHAOS_S", "600"))
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(_LENGTH_S + 300)]

_NUM_CLIENTS = 12
_REQUEST_LIMIT_S = 60.0
"""An answer of 3 s, three moves, each from a worker that must first be noticed to be frozen."""
_QUIET = 8
"""Rounds of requests that must all be right for the cluster to have recovered."""


class Load:
    """Clients that ask one request after the other."""

    def __init__(self, port: int, seed: int) -> None:
        self.num_right = 0
        self.refused: collections.Counter[str] = collections.Counter()
        self.bad: list[str] = []
        self.slowest_s = 0.0
        self._url = f"http://127.0.0.1:{port}/v1/completions"
        self._rng = random.Random(seed)
        self._tokenizer = load_tokenizer(resolve("demo"))

    async def client(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if not await self.ask(session, self._rng.choice((1, 20, 80, 150))):
                await asyncio.sleep(0.1)

    async def ask(self, session: aiohttp.ClientSession, num_tokens: int) -> bool:
        """One request; whether it was answered, and right."""
        prompt = [self._rng.randrange(450) for _ in range(self._rng.randrange(1, 60))]  # bytes of half characters too
        body = {"prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
        started = time.monotonic()
        try:
            async with session.post(self._url, json=body) as response:
                status, answer = response.status, await response.json()
        except (TimeoutError, aiohttp.ClientError) as error:
            self.bad.append(f"no answer after {time.monotonic() - started:.1f} s: {error!r}")
            return False
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        if status != 200:
            self.refused[str(answer["error"]["code"])] += 1
            return False
        stream = Detokenizer(self._tokenizer, prompt_ids=prompt)
        wanted = stream.push(prefix_answer(prompt, num_tokens)) + stream.flush()
        if (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) != (wanted, num_tokens):
            self.bad.append(f"wrong: {prompt} + {num_tokens}: {answer}")
            return False
        self.num_right += 1
        return True


async def _recovered_s(load: Load, session: aiohttp.ClientSession) -> float:
    """Seconds until the first of `_QUIET` rounds in a row without an error."""
    started = first = time.monotonic()
    num_good = 0
    while num_good < _QUIET and time.monotonic() - started < 60:
        at = time.monotonic()
        answers = await asyncio.gather(*(load.ask(session, 2) for _ in range(6)))
        if all(answers):
            first = at if not num_good else first
            num_good += 1
        else:
            num_good = 0
        await asyncio.sleep(0.25)
    return first - started if num_good == _QUIET else float("inf")


async def test_faults_at_random_under_load(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(1 << 30))
    engine = tmp_path / "prefix.py"
    engine.write_text(PREFIX_ENGINE)
    chaos = Chaos(tmp_path, f"out=pytok:{engine}", planes=("tcp", "tcp", "nats"), seed=seed)
    timeout = aiohttp.ClientTimeout(total=_REQUEST_LIMIT_S)
    try:
        await chaos.start()
        load, stop = Load(chaos.port, seed), asyncio.Event()
        async with aiohttp.ClientSession(timeout=timeout) as session:
            clients = [asyncio.create_task(load.client(session, stop)) for _ in range(_NUM_CLIENTS)]
            await chaos.faults(time.monotonic() + _LENGTH_S)
            recovered_s = await _recovered_s(load, session)
            stop.set()
            await asyncio.gather(*clients)
    finally:
        await chaos.close()
    print(f"\nseed {seed}, {_LENGTH_S:.0f} s: {chaos.counts}; {load.num_right} right, refused {dict(load.refused)}")
    print(f"slowest request {load.slowest_s:.1f} s; recovered after {recovered_s:.1f} s")
    faults = "\n".join(chaos.said)
    assert chaos.trouble == [], faults
    assert not load.bad, "\n".join([*load.bad[:5], faults])
    assert load.num_right > 2 * _LENGTH_S, faults
    assert recovered_s <= LEASE_S + 2, faults
