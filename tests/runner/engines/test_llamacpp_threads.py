"""Threads of a step: all on a quiet machine, fewer where others use the cores, back when they are done."""

from __future__ import annotations

import time

import pytest

from runner.engines.llamacpp.threads import ThreadGovernor, idle_seconds


class Clock:
    """Wall, CPU and idle time, told by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.cpu = self.idle = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(time, "monotonic", lambda: self.wall)
        monkeypatch.setattr(time, "process_time", lambda: self.cpu)

    def run(self, governor: ThreadGovernor, seconds: float, *, cores: float, idle: float) -> None:
        """Steps of 20 ms in which this process gets at most `cores` cores and `idle` cores are idle."""
        for _ in range(round(seconds / 0.02)):
            governor.start_step()
            self.wall += 0.02
            self.cpu += 0.02 * min(cores, governor.threads)
            self.idle += 0.02 * idle
            governor.end_step()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    return Clock(monkeypatch)


def test_keeps_all_threads_on_a_quiet_machine(clock: Clock) -> None:
    changes: list[int] = []
    governor = ThreadGovernor(2, changes.append, idle_s=lambda: clock.idle)
    clock.run(governor, 5, cores=1.97, idle=0)
    assert changes == [] and governor.threads == 2


def test_gives_way_and_comes_back(clock: Clock) -> None:
    changes: list[int] = []
    governor = ThreadGovernor(2, changes.append, idle_s=lambda: clock.idle)
    clock.run(governor, 0.2, cores=1.2, idle=0)
    assert changes == [1]
    clock.run(governor, 3, cores=0.95, idle=0.05)
    assert changes == [1]
    clock.run(governor, 3, cores=2.0, idle=0.95)
    assert changes == [1, 2]


def test_never_below_one_and_more_at_once_on_a_large_machine(clock: Clock) -> None:
    changes: list[int] = []
    governor = ThreadGovernor(16, changes.append, idle_s=lambda: clock.idle)
    clock.run(governor, 0.2, cores=0.3, idle=0)
    assert changes == [1]
    clock.run(governor, 3, cores=16.0, idle=15.0)
    assert governor.threads == 16


@pytest.mark.parametrize("is_fixed", [True, False])
def test_the_users_number_is_not_touched(is_fixed: bool, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_fixed:
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # sleeping threads look like crowded ones
    changes: list[int] = []
    governor = ThreadGovernor(2, changes.append, is_fixed=is_fixed, idle_s=lambda: clock.idle)
    clock.run(governor, 2, cores=0.5, idle=0)
    assert changes == []


def test_idle_seconds_grow() -> None:
    first = idle_seconds()
    assert first is None or first > 0
