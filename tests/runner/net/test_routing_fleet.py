"""kv routing before four mockers with a prefix cache, in simulated time, against round-robin on the same prompts."""

from __future__ import annotations

import pytest

from runner.net.routing import Router
from tests.runner.net.fleet import Fleet, Outcome, shared_prefixes


def _run(mode: str, num_prefixes: int, at_once: int, num_prompts: int = 240, prefix_len: int = 2680) -> Outcome:
    prompts = shared_prefixes(num_prompts, num_prefixes, prefix_len)
    return Fleet(Router(mode, block_size=16)).run(prompts, at_once)


@pytest.mark.parametrize("at_once", [4, 8, 16])
def test_caches_that_hold_a_third_of_the_prefixes_each(at_once: int) -> None:
    kv, turns = (_run(mode, 24, at_once) for mode in ("kv", "round-robin"))
    assert kv.hits > 2.3 * turns.hits
    assert kv.mean_first_s < 0.5 * turns.mean_first_s


def test_more_prefixes_than_all_caches_hold() -> None:
    kv, turns = (_run(mode, 60, 8, num_prompts=360) for mode in ("kv", "round-robin"))
    assert kv.hits > 2.5 * turns.hits
    assert kv.mean_first_s < turns.mean_first_s


def test_one_prefix_of_all_does_not_keep_all_at_one_worker() -> None:
    kv, turns = (_run(mode, 1, 8) for mode in ("kv", "round-robin"))
    assert kv.mean_first_s < 1.25 * turns.mean_first_s


def test_prompts_that_share_nothing() -> None:
    kv, turns = (_run(mode, 160, 8, num_prompts=160) for mode in ("kv", "round-robin"))
    assert kv.mean_first_s < 1.2 * turns.mean_first_s


def test_many_short_prompts() -> None:
    kv, turns = (_run(mode, 24, 32, num_prompts=480, prefix_len=320) for mode in ("kv", "round-robin"))
    assert kv.hits > 1.1 * turns.hits
    assert kv.mean_first_s < turns.mean_first_s
