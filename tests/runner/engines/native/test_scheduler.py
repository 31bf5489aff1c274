"""Scheduler: whom a step serves and how much, without a model."""

from __future__ import annotations

from runner.engines.native.blocks import root_hash
from runner.engines.native.scheduler import CoreConfig, Scheduled, Scheduler
from runner.engines.native.sequence import Group
from runner.types import SamplingParams, TokenRequest


def make_scheduler(**changes: int) -> Scheduler:
    sizes = {"num_blocks": 16, "block_size": 4, "max_running": 4, "max_batched_tokens": 32, "context_length": 64}
    return Scheduler(CoreConfig(**{**sizes, "vocab_size": 1000, **changes}))


class Line:
    """Requests in order, each with a prompt of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.groups: list[Group] = []

    def add(self, prompt_len: int, max_tokens: int = 20, width: int = 1) -> Group:
        number = len(self.groups)
        request = TokenRequest(
            id=str(number),
            token_ids=[100 * number + at for at in range(prompt_len)],
            max_tokens=max_tokens,
            sampling=SamplingParams(beam_width=width),
        )
        group = Group(request, number, root_hash(b""))
        self.groups.append(group)
        self.scheduler.add(group)
        return group

    def step(self) -> dict[int, int]:
        """Arrival -> tokens in this step; each that is sampled gets a token."""
        scheduled = self.scheduler.schedule()
        assert scheduled is not None
        self.scheduler.check()
        self.finish_step(scheduled)
        return {chunk.sequence.group.arrival: chunk.num_new for chunk in scheduled.chunks}

    def finish_step(self, scheduled: Scheduled) -> None:
        self.scheduler.mark_computed(scheduled.chunks)
        for sequence in scheduled.sampled:
            sequence.token_ids.append(7)
        self.scheduler.check()


def test_decodes_and_chunks_share_a_step() -> None:
    line = Line(make_scheduler(max_batched_tokens=10, num_blocks=32))
    line.add(3)
    line.add(12)
    assert line.step() == {0: 3, 1: 7}
    assert line.step() == {0: 1, 1: 5}
    line.add(2)
    assert line.step() == {0: 1, 1: 1, 2: 2}


def test_nothing_to_do_is_none() -> None:
    assert make_scheduler().schedule() is None


def test_no_more_run_than_there_are_seats() -> None:
    line = Line(make_scheduler(max_running=2, num_blocks=64))
    for _ in range(3):
        line.add(2)
    assert line.step() == {0: 2, 1: 2}
    line.scheduler.finish(line.groups[0])
    assert line.step() == {1: 1, 2: 2}


def test_a_beam_search_takes_its_seats_beforehand() -> None:
    line = Line(make_scheduler(max_running=4, num_blocks=64))
    line.add(2, width=3)
    line.add(2, width=2)
    line.add(2)
    assert line.step() == {0: 2}, "the second has no seats, and nobody overtakes it"


def test_the_youngest_makes_room_and_comes_back_first() -> None:
    line = Line(make_scheduler(num_blocks=4))
    line.add(4, 11)
    line.add(4, 11)
    assert line.step() == {0: 4, 1: 4}
    third = line.add(2, 2)
    for _ in range(4):
        line.step()
    assert line.step() == {0: 1}, "blocks ran out: the second gave its two back"
    assert list(line.scheduler.waiting) == [line.groups[1], third]
    assert line.groups[1].sequences[0].num_output == 5
    line.scheduler.finish(line.groups[0])
    assert line.step()[1] == 9 - 4, "its first block was still in the prefix cache"


def test_growth_is_left_free_when_others_run() -> None:
    line = Line(make_scheduler(num_blocks=8, max_running=8, max_batched_tokens=100))
    for _ in range(4):
        line.add(4)
    line.add(12)
    assert set(line.step()) == {0, 1, 2, 3}, "its three blocks are there, but the others would soon push it out"


def test_what_is_alone_needs_no_reserve() -> None:
    line = Line(make_scheduler(num_blocks=4, max_batched_tokens=100))
    line.add(15, 1)
    assert line.step() == {0: 15}


def test_a_finished_request_leaves_its_prefix() -> None:
    line = Line(make_scheduler())
    group = line.add(9)
    line.step()
    line.scheduler.finish(group)
    line.scheduler.check()
    assert line.scheduler.pool.num_free == 16
    again = Group(group.request, 1, root_hash(b""))
    line.scheduler.add(again)
    assert line.step() == {1: 1}
    assert again.num_cached == 8


def test_a_waiting_request_can_go() -> None:
    line = Line(make_scheduler(max_running=1))
    line.add(3)
    line.add(3)
    line.step()
    line.scheduler.finish(line.groups[1])
    line.scheduler.check()
    assert not line.scheduler.waiting


def test_ten_thousand_wait_and_go_quickly() -> None:
    line = Line(make_scheduler(max_running=2))
    for _ in range(10_000):
        line.add(1)
    line.step()
    for group in line.groups[:9_999]:
        line.scheduler.finish(group)
    assert line.step() == {9_999: 1}
