"""Steps on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from runner import steps
from runner.steps import Steps, duration


class Terminal(io.StringIO):
    """Says that a person is there."""

    def isatty(self) -> bool:
        return True


def shown(text: str) -> list[str]:
    """What is left to see: each line after its last return to the left."""
    return [line.rsplit(steps._CLEAR_LINE, 1)[-1] for line in text.split("\n")]


def test_plain_lines_where_nobody_looks() -> None:
    stream = io.StringIO()
    with Steps(stream) as told:
        told.say("one")
        told.say("downloading a")
    assert stream.getvalue() == "one\ndownloading a\n"


def test_a_terminal_has_one_moving_line_and_the_time_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    clock = [100.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: clock[0])
    stream = Terminal()
    with Steps(stream) as told:
        told.say("making an environment")
        clock[0] += 75
        told.say("downloading a (1 MB)")
        told.say("downloading b (2 MB)")
        clock[0] += 5
        assert shown(stream.getvalue())[-1] == "downloading b (2 MB) …"
        told.say("trying it")
    assert shown(stream.getvalue()) == ["making an environment (1 min 15 s)", "trying it", "done in 1 min 20 s", ""]


def test_the_step_that_fails_stays_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with pytest.raises(RuntimeError), Steps(stream) as told:
        told.say("downloading a")
        raise RuntimeError
    assert shown(stream.getvalue()) == ["downloading a", ""]


def test_the_line_moves_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_TICK_S", 0.01)
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with Steps(stream) as told:
        told.say("waiting")
        for _ in range(500):
            if stream.getvalue().count("waiting …") > 3:
                break
            told._is_over.wait(0.01)
    assert stream.getvalue().count("waiting …") > 3


def test_durations() -> None:
    assert [duration(0.9), duration(59.9), duration(125)] == ["0 s", "59 s", "2 min 5 s"]
