"""echo_core and echo_full: what they repeat and where they stop (the stream rules are in test_conformance.py)."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest

from model_cards.card import ModelCard
from runner.engines.base import EngineSpec
from runner.engines.echo import EchoFull, echo_delay_s, make_core, make_full
from runner.errors import RequestError, UnsupportedField, UsageError
from runner.types import ChatRequest, SamplingOptions, TextDelta, TokenDelta, TokenRequest


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_TOKEN_ECHO_DELAY_MS", "0")


async def echo_ids(token_ids: list[int], **fields: Any) -> list[TokenDelta]:
    engine = make_core(EngineSpec(name="echo_core", card=ModelCard(name="m", source="m")))
    await engine.start()
    async with aclosing(engine.generate(TokenRequest(id="r", token_ids=token_ids, **fields))) as stream:
        return [delta async for delta in stream]


async def full(**fields: Any) -> tuple[str, list[TextDelta]]:
    service = make_full(EngineSpec(name="echo_full", card=ModelCard(name="", source="")))
    await service.start()
    async with aclosing(service.generate(ChatRequest(id="r", **fields))) as stream:
        deltas = [delta async for delta in stream]
    return "".join(delta.text for delta in deltas if delta.index == 0), deltas


async def test_the_prompt_comes_back_one_id_at_a_time() -> None:
    deltas = await echo_ids([5, 6, 7])
    assert deltas == [TokenDelta([5]), TokenDelta([6]), TokenDelta([7]), TokenDelta(finish="stop")]


async def test_stop_ids_and_min_tokens() -> None:
    assert await echo_ids([5, 2, 7], stop_token_ids=(2,)) == [
        TokenDelta([5]),
        TokenDelta(finish="stop", stop_token_id=2),
    ]
    deltas = await echo_ids([5, 2, 7, 2, 8], stop_token_ids=(2,), min_tokens=2)
    assert deltas == [TokenDelta([5]), TokenDelta([7]), TokenDelta(finish="stop", stop_token_id=2)]


async def test_the_last_user_message_comes_back() -> None:
    messages = [
        {"role": "user", "content": "no"},
        {"role": "user", "content": [{"type": "text", "text": "Grüße"}, {"type": "text", "text": "!"}]},
        {"role": "assistant", "content": "hm"},
    ]
    text, deltas = await full(messages=messages)
    assert text == "Grüße!"
    assert len(deltas) == 7
    assert deltas[-1].finish == "stop"
    assert deltas[-1].usage is not None
    assert (deltas[-1].usage.prompt_tokens, deltas[-1].usage.completion_tokens) == (6, 6)


@pytest.mark.parametrize(
    ("fields", "text", "finish", "stop_reason"),
    [
        ({}, "a STOP b", "stop", None),
        ({"max_tokens": 3}, "a S", "length", None),
        ({"stop": ("STOP",)}, "a ", "stop", "STOP"),
        ({"stop": ("b", " S")}, "a", "stop", " S"),
        ({"stop": ("STOP",), "include_stop_str_in_output": True}, "a STOP", "stop", "STOP"),
        ({"stop": ("STOP",), "max_tokens": 1}, "a", "length", None),
    ],
)
async def test_where_text_ends(fields: dict[str, Any], text: str, finish: str, stop_reason: str | None) -> None:
    answer, deltas = await full(prompt="a STOP b", **fields)
    assert (answer, deltas[-1].finish, deltas[-1].stop_reason) == (text, finish, stop_reason)


async def test_choices_and_echo() -> None:
    text, deltas = await full(prompt="ab", echo=True, sampling=SamplingOptions(n=2))
    assert text == "abab"
    assert [delta.index for delta in deltas if delta.finish] == [0, 1]
    assert [delta.usage is None for delta in deltas][-2:] == [True, False]


async def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UnsupportedField, match="logprobs"):
        await full(prompt="a", sampling=SamplingOptions(logprobs=1))
    with pytest.raises(RequestError, match="as text"):
        await full(prompt=[1, 2])
    with pytest.raises(RequestError, match="no user message"):
        await full(messages=[{"role": "system", "content": "x"}])
    service = EchoFull(EngineSpec(name="echo_full", card=ModelCard(name="", source="")))
    assert service.card.name == "echo_full"
    with pytest.raises(UnsupportedField, match="no tokenizer"):
        service.tokenize("x")


def test_the_delay_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_TOKEN_ECHO_DELAY_MS", "30")
    assert echo_delay_s() == 0
    monkeypatch.delenv("LLMRUN_TOKEN_ECHO_DELAY_MS")
    assert echo_delay_s() == 0.03
    monkeypatch.setenv("DYN_TOKEN_ECHO_DELAY_MS", "soon")
    with pytest.raises(UsageError, match="milliseconds"):
        echo_delay_s()
