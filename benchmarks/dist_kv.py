"""dyn://: kv routing against round-robin on prompts that share prefixes, 4 workers with a prefix cache each.

Every mode gets fresh workers. The caches are small: they hold some of the prefixes, not all, as in a real fleet.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.dist_cluster import cluster, mocker_words
from benchmarks.row import Row
from benchmarks.settings import Settings
from runner.bench.client import HttpTarget
from runner.bench.load import closed_loop
from runner.bench.load import run as run_loop
from runner.bench.records import BenchRequest, Sample
from runner.bench.workload import WORDS

WORKERS, PREFIXES, REQUESTS = 4, 24, 240
AT_ONCE = (4, 8)
PREFIX_WORDS = 1_000
HITS_BAR, TTFT_BAR = 2.0, 0.6


def measure(settings: Settings) -> list[Row]:
    """Rows for hits and for the time to the first token, with a request a worker and with two."""
    return [row for at_once in AT_ONCE for row in _compare(settings, at_once)]


def _compare(settings: Settings, at_once: int) -> list[Row]:
    number = REQUESTS // 4 if settings.is_quick else REQUESTS
    kv, turns = (_run(settings, mode, number, at_once) for mode in ("kv", "round-robin"))
    hits = [sum(one.cached_tokens for one in samples) for samples in (kv, turns)]
    firsts = [sum((one.first_s or one.end_s) - one.start_s for one in samples) / number for samples in (kv, turns)]
    what = f"{WORKERS} workers, {PREFIXES} prefixes, {number} requests, {at_once} at once"
    prompt = sum(one.prompt_tokens for one in kv)
    return [
        Row(
            what=f"prompt tokens out of the cache, {what}",
            ours=f"{hits[0]:,} of {prompt:,} (kv)",
            rival=f"{hits[1]:,} (round-robin)",
            ratio=f"{hits[0] / max(1, hits[1]):.2f}",
            bar=f">= {HITS_BAR:g}x",
            is_met=hits[0] >= HITS_BAR * hits[1],
        ),
        Row(
            what=f"mean time to first token, {what}",
            ours=f"{firsts[0] * 1e3:,.1f} ms (kv)",
            rival=f"{firsts[1] * 1e3:,.1f} ms (round-robin)",
            ratio=f"{firsts[0] / firsts[1]:.2f}",
            bar=f"<= {TTFT_BAR:g}x",
            is_met=firsts[0] <= TTFT_BAR * firsts[1],
        ),
    ]


def _requests(number: int) -> Iterator[BenchRequest]:
    rng = random.Random(7)
    prefixes = [" ".join(rng.choices(WORDS, k=PREFIX_WORDS)) for _ in range(PREFIXES)]
    for _ in range(number):
        yield BenchRequest(prompt=f"{rng.choice(prefixes)} {' '.join(rng.choices(WORDS, k=20))}", max_tokens=16)


def _run(settings: Settings, mode: str, number: int, at_once: int) -> list[Sample]:
    # 1,536 blocks of 16 tokens are some 9 of the 24 prefixes; two or so are what runs. A fair share is 6.
    words = mocker_words(settings, "dist_kv", block_size=16, num_gpu_blocks=1536, prefill_us_per_token=100.0)
    words += ["--context-length", "4096"]
    with cluster(settings, WORKERS, words, ["--router-mode", mode]) as made:
        samples = run_loop(_load(made.ingress.url, number, at_once))
    errors = [one.error for one in samples if one.error]
    if errors:
        raise RuntimeError(f"{mode}: {len(errors)} requests failed: {errors[0]}")
    return samples


async def _load(url: str, number: int, at_once: int) -> list[Sample]:
    target = HttpTarget(url, timeout_s=60)
    await target.prepare()
    try:
        return await closed_loop(target, _requests(number), at_once)
    finally:
        await target.close()
