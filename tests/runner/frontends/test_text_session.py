"""The conversation: what is kept, what is taken back, what is saved."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from runner.errors import EngineFailed, UsageError
from runner.frontends.text_session import ChatSession
from runner.openai_requests import RequestDefaults
from tests.runner.frontends.text_fakes import ScriptedService


async def collect(answer: Any, limit: int | None = None) -> str:
    """The text of an answer; with `limit`, the stream is closed after so many deltas."""
    parts: list[str] = []
    async with contextlib.aclosing(answer) as stream:
        async for delta in stream:
            parts.append(delta.text)
            if len(parts) == limit:
                break
    return "".join(parts)


def roles(session: ChatSession) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in session.messages]


async def test_the_whole_conversation_goes_with_every_question() -> None:
    service = ScriptedService(["one ", "two"], ["three"])
    session = ChatSession(service, RequestDefaults(fields={"temperature": 0.5, "max_tokens": 7}, system="be short"))
    assert await collect(session.ask("a")) == "one two"
    assert await collect(session.ask("b")) == "three"
    last = service.requests[1]
    assert [message["content"] for message in last.messages or []] == ["be short", "a", "one two", "b"]
    assert (last.sampling.temperature, last.max_tokens) == (0.5, 7)
    assert service.requests[0].id != last.id


async def test_the_fill_of_the_context_is_prompt_and_answer() -> None:
    session = ChatSession(ScriptedService(["x", "y"], context_length=64))
    assert session.fill() == "ctx 0/64"
    await collect(session.ask("a b c"))
    assert session.fill() == "ctx 5/64"
    session.clear()
    assert (session.fill(), session.messages) == ("ctx 0/64", [])


@pytest.mark.parametrize("pieces", [[EngineFailed("no")], ["half", EngineFailed("no")]])
async def test_a_failed_turn_leaves_no_trace(pieces: list[Any]) -> None:
    session = ChatSession(ScriptedService(["fine"], pieces, ["again"]))
    await collect(session.ask("a"))
    with pytest.raises(EngineFailed):
        await collect(session.ask("b"))
    assert roles(session) == [("user", "a"), ("assistant", "fine")]
    await collect(session.ask("c"))
    assert roles(session)[2:] == [("user", "c"), ("assistant", "again")]


async def test_a_stopped_answer_is_kept_and_marked() -> None:
    session = ChatSession(ScriptedService(["one ", "two ", "three"]))
    assert await collect(session.ask("a"), limit=2) == "one two "
    assert roles(session) == [("user", "a"), ("assistant", "one two ")]
    assert session.stopped == {1}


async def test_a_stop_before_the_first_text_takes_the_question_back() -> None:
    session = ChatSession(ScriptedService(["", "x"]))
    await collect(session.ask("a"), limit=1)
    assert session.messages == []


async def test_an_empty_answer_that_ended_by_itself_is_kept() -> None:
    session = ChatSession(ScriptedService([]))
    await collect(session.ask("a"))
    assert roles(session) == [("user", "a"), ("assistant", "")]


async def test_regenerate_replaces_the_answer_and_a_failure_brings_it_back() -> None:
    service = ScriptedService(["old"], ["new"], [EngineFailed("no")])
    session = ChatSession(service)
    with pytest.raises(UsageError, match="nothing to answer again"):
        await collect(session.regenerate())
    await collect(session.ask("a"))
    assert await collect(session.regenerate()) == "new"
    assert [message["content"] for message in service.requests[1].messages or []] == ["a"]
    with pytest.raises(EngineFailed):
        await collect(session.regenerate())
    assert roles(session) == [("user", "a"), ("assistant", "new")]


async def test_regenerate_of_a_stopped_answer_unmarks_it() -> None:
    session = ChatSession(ScriptedService(["one ", "two"], ["whole"]))
    await collect(session.ask("a"), limit=1)
    await collect(session.regenerate())
    assert (roles(session)[1], session.stopped) == (("assistant", "whole"), set())


async def test_saved_and_loaded_as_openai_messages(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    session = ChatSession(ScriptedService(["b"]), RequestDefaults(fields={"temperature": 0}, system="s"))
    await collect(session.ask("a"))
    assert session.save(path) == 3
    data = json.loads(path.read_text())
    assert [message["role"] for message in data["messages"]] == ["system", "user", "assistant"]
    assert (data["model"], data["temperature"]) == ("fake", 0)
    other = ChatSession(ScriptedService())
    assert other.load(path) == 3
    assert (other.system, roles(other)) == ("s", [("user", "a"), ("assistant", "b")])
    session.save(path)


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    with pytest.raises(UsageError, match=r"precious\.txt exists and is not a saved chat"):
        ChatSession(ScriptedService()).save(path)
    with pytest.raises(UsageError, match="cannot write"):
        ChatSession(ScriptedService()).save(tmp_path / "no" / "folder.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("3", "expected a list of messages"),
        ('[{"role": "robot", "content": "x"}]', "message 0 has role 'robot'; allowed: system"),
        ('[{"role": "user", "content": [{"type": "text"}]}]', "message 0 has no text"),
        ("[3]", "message 0 has role None"),
    ],
)
def test_a_bad_chat_file_is_named_and_changes_nothing(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    session = ChatSession(ScriptedService())
    session.messages = [{"role": "user", "content": "kept"}]
    with pytest.raises(UsageError, match=message):
        session.load(path)
    assert session.messages == [{"role": "user", "content": "kept"}]
