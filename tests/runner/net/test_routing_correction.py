"""kv routing learns from the workers' own words what their caches have thrown away."""

from __future__ import annotations

from dataclasses import dataclass

from runner.net.routing import Router


@dataclass
class One:
    id: int
    num_running: int = 0
    unread_blocks: int = 0


def _prompt(number: int) -> list[int]:
    return [number] * 64


def test_what_was_used_before_a_lost_block_is_forgotten_and_what_came_later_is_not() -> None:
    router = Router("kv", block_size=16)
    (worker,) = workers = [One(7)]
    for number in (1, 2, 3):
        router.pick(workers, _prompt(number))
        assert router.last is not None
        router.settle(router.last)
    router.pick(workers, _prompt(2))
    assert router.last is not None and router.last.overlap == 4
    assert router.correct(router.last, cached_tokens=63) == 0  # the last token is always read
    router.settle(router.last)
    router.pick(workers, _prompt(2))
    assert router.correct(router.last, cached_tokens=20) == 3  # one block of four was there
    overlaps = {}
    for number in (1, 2, 3):
        router.pick(workers, _prompt(number))
        overlaps[number] = router.last.overlap
    assert overlaps == {1: 0, 2: 4, 3: 0}  # 2 was sent last; 1 and 3 before the last time that 2 was there
    assert worker.unread_blocks == 0


def test_a_prompt_that_is_still_being_read_says_nothing_about_the_rest() -> None:
    router = Router("kv", block_size=16)
    workers = [One(1)]
    router.pick(workers, _prompt(1))
    assert router.last is not None
    router.settle(router.last)
    router.pick(workers, _prompt(2))
    router.pick(workers, _prompt(2))  # at the same time: its twin's blocks are not there yet
    assert router.correct(router.last, 0) == 4
    router.pick(workers, _prompt(1))
    assert router.last.overlap == 4


def test_another_workers_blocks_stay_and_a_worker_that_is_gone_is_no_trouble() -> None:
    router = Router("kv", block_size=16)
    workers = [One(1), One(2)]
    router.pick(workers[:1], _prompt(5))
    router.pick(workers[1:], _prompt(5))
    router.pick(workers[:1], _prompt(5))
    last = router.last
    assert last is not None and router.correct(last, 0) == 4
    router.forget(1)
    assert router.correct(last, 0) == 4
    router.pick(workers[1:], _prompt(5))
    assert router.last is not None and router.last.overlap == 4
