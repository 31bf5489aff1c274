"""What clients send and what is killed, with the real vLLM through the whole launcher (make test-vllm)."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import pytest

from runner.engines.link import _Stream
from runner.engines.process import ProcessEngine
from runner.engines.vllm import wire
from tests.runner.engines.vllm.program import CHAT, Program, running, seconds_until_gone
from tests.runner.engines.vllm.test_real import PYTHON, engine, is_right, pytestmark

__all__ = ["engine", "pytestmark"]

SAMPLING = {"max_tokens": 4, "detokenize": False, "output_kind": 1, "temperature": 0.0}
PROMPT = [5, 6, 7]
WIRE: dict[str, tuple[list[int] | None, dict[str, Any], dict[str, Any]]] = {
    "temperature 5": (PROMPT, {"temperature": 5.0}, {}),
    "max_tokens 0": (PROMPT, {"max_tokens": 0}, {}),
    "a wrong type": (PROMPT, {"temperature": "hot"}, {}),
    "n 3, greedy": (PROMPT, {"n": 3}, {}),
    "stop strings without detokenize": (PROMPT, {"stop": ["x"]}, {}),
    "a prompt of the whole context": ([5] * 1024, {}, {}),
    "an empty prompt": ([], {}, {}),
    "no prompt": (None, {}, {}),
    "a negative id": ([5, -1], {}, {}),
    "an id outside of the vocabulary": ([5, 10**6], {}, {}),
    "logit_bias outside": (PROMPT, {"logit_bias": {10**6: 1.0}}, {}),
    "a stop id outside": (PROMPT, {"stop_token_ids": [10**6], "_all_stop_token_ids": [10**6], "min_tokens": 2}, {}),
    "an allowed id outside": (PROMPT, {"allowed_token_ids": [10**6]}, {}),
    "logprobs above the vocabulary": (PROMPT, {"logprobs": 10**6}, {}),
    "an adapter that is not there": (PROMPT, {}, {"lora_request": "nowhere"}),
    "a grammar that is none": (PROMPT, {"structured_outputs": {"grammar": "root ::= ((("}}, {}),
    "embeddings of a model that makes none": (PROMPT, {}, {"pooling_params": "embed"}),
}
"""Requests that no launcher of ours sends: facts of what kills or deafens a bare EngineCore."""
LONG = "a " * 2000
HARMLESS: dict[str, dict[str, Any]] = {
    "max_tokens none": {"max_tokens": None, "stop_token_ids": [9]},
    "an unknown sampling key": {"no_such_field": 1},
    "structured output without a backend": {"structured_outputs": {"regex": "[a-z]+"}},
}


async def raw(link: Any, ids: list[int] | None, sampling: dict[str, Any], fields: dict[str, Any]) -> str:
    """Send an ADD past all of the launcher's checks; the error's text, or an empty string for a good end."""
    fields = dict(fields)
    if "lora_request" in fields:
        fields["lora_request"] = ["x", 1, "/nowhere"]
    if "pooling_params" in fields:
        fields |= {"pooling_params": link._wire.embed(), "sampling_params": None}
    else:
        fields["sampling_params"] = {**SAMPLING, **sampling}
    key = link.next_key()
    stream = link.streams[key] = _Stream()
    try:
        link._send(wire.ADD, link._wire.add(str(key), ids, **fields))
        async with asyncio.timeout(30):
            while stream.error is None and (stream.tokens is None or stream.tokens.finish is None):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        del link.streams[key]
    return "" if stream.error is None else str(stream.error)


async def test_whatever_comes_by_the_wire_ends_one_request_only(engine: ProcessEngine) -> None:
    pid = engine.pid
    link: Any = engine._connection.link  # type: ignore[union-attr]
    for name, (ids, sampling, fields) in WIRE.items():
        error = await raw(link, ids, sampling, fields)
        assert "refuses" in error, (name, error)
        assert await is_right(engine), name
    for name, sampling in HARMLESS.items():
        assert await raw(link, PROMPT, sampling, {}) == "", name
    link._send(wire.ABORT, link._wire.abort("nobody"))
    link._send_utility(link.next_key(), "no_such_method", ())
    assert await is_right(engine)
    assert engine.pid == pid and engine.num_restarts == 0


async def test_a_second_request_of_a_running_id_does_not_end_the_first(engine: ProcessEngine) -> None:
    link: Any = engine._connection.link  # type: ignore[union-attr]
    key = link.next_key()
    stream = link.streams[key] = _Stream()
    body = link._wire.add(str(key), PROMPT, sampling_params={**SAMPLING, "max_tokens": 200, "ignore_eos": True})
    for _ in range(5):  # before the first can be known, ...
        link._send(wire.ADD, body)
    await asyncio.sleep(0.1)
    link._send(wire.ADD, body)  # ... and while it runs
    async with asyncio.timeout(30):
        while stream.tokens is None or stream.tokens.finish is None:
            assert stream.error is None
            await asyncio.sleep(0.01)
    del link.streams[key]
    assert len(stream.tokens.token_ids) == 200
    assert await is_right(engine)


def _body(dice: random.Random) -> Any:
    """A body with up to four fields that are neutral, odd or wrong; sometimes no body at all."""
    values: list[Any] = [None, 0, 1, -1, 2, 0.5, 1e308, 10**30, "", "x", [], {}, [1], ["a"], {"a": 1}, True]
    odd: dict[str, list[Any]] = {
        "max_tokens": [1, 2, 3, 0, -1, 10**9],
        "temperature": [0, 1, 2, 5, -1],
        "top_p": [0.1, 1, 0, 2],
        "top_k": [0, 1, 5, -1, 10**9],
        "min_p": [0, 0.5, 2],
        "presence_penalty": [0, 2, 3],
        "frequency_penalty": [0, -2, -3],
        "repetition_penalty": [1, 1.5, 0],
        "seed": [0, 1, -1, 2**63 - 1, 2**64],
        "n": [1, 2, 0, 1000],
        "stop": ["a", ["a", "b"], [""], ["x"] * 30],
        "stop_token_ids": [[1], [-1], [10**6]],
        "logit_bias": [{"5": 1}, {"-1": 1}, {"999999": 1}, {"x": 1}, {"5": 1000}],
        "logprobs": [True, False],
        "top_logprobs": [0, 3, 20, 21, -1],
        "min_tokens": [0, 1, 3, 10**6],
        "response_format": [{"type": "json_object"}, {"type": "json_schema"}, {"type": "x"}],
        "guided_regex": ["[a-z]+", "((("],
        "guided_grammar": ['root ::= "a"', "((("],
        "guided_choice": [["a", "b"], []],
        "guided_json": [{"type": "object"}, False, {"type": 3}],
        "ignore_eos": [True, False],
        "model": ["demo-hf", "nobody"],
        "tools": [[], [{"type": "function", "function": {"name": "f", "parameters": {}}}]],
        "stream_options": [{"include_usage": True}],
        "echo": [True],
        "messages": [[], [{"role": "user"}], [{"role": "x", "content": "y"}], [{"role": "user", "content": LONG}]],
        "prompt": ["a", [5, 6], [-1], [10**6], [], ["a", "b"], [[5], [6]], "a " * 3000],
        "input": ["a", [5]],
    }  # fmt: skip
    if dice.random() < 0.02:
        return dice.choice([b"", b"{", b"[]", b"null", b"\xff\xfe", b"{" * 5000, b'{"messages": 1e999}'])
    body: dict[str, Any] = {**CHAT, "max_tokens": dice.randint(1, 3)}
    for name in dice.sample(sorted(odd), dice.randint(0, 4)):
        body[name] = dice.choice(odd[name]) if dice.random() < 0.8 else dice.choice(values)
    return body


async def _send(program: Program, dice: random.Random) -> tuple[int, Any]:
    path = dice.choice(["/v1/chat/completions"] * 6 + ["/v1/completions"] * 3 + ["/v1/embeddings"])
    body = _body(dice)
    if path.endswith("/completions") and "chat" not in path and isinstance(body, dict):
        body = {"prompt": "Hi", **{name: value for name, value in body.items() if name != "messages"}}
    async with asyncio.timeout(60):
        return await program.post(path, body)


async def test_five_thousand_fuzzed_requests_over_http() -> None:
    dice, gate = random.Random(5), asyncio.Semaphore(32)
    counts: dict[int, int] = {}
    wrong: list[Any] = []
    async with running(str(PYTHON), "--max-running", "32") as program:
        core, right = program.core().pid, await program.answer()

        async def one() -> None:
            async with gate:
                status, body = await _send(program, dice)
            counts[status] = counts.get(status, 0) + 1
            has_words = isinstance(body, dict) and ("error" in body) == (status != 200)
            if status >= 500 or not has_words:
                wrong.append((status, body))

        for _ in range(10):
            await asyncio.gather(*[one() for _ in range(500)])
            assert await program.answer() == right
        assert program.core().pid == core
    assert not wrong, (len(wrong), wrong[:3])
    assert sum(counts.values()) == 5000 and counts[200] > 500 and counts[400] > 500, counts


async def _streams(program: Program, number: int) -> list[asyncio.Task[tuple[float, bytes]]]:
    """All have begun: one that comes after the engine's death would be answered by the next."""
    begun = [asyncio.Event() for _ in range(number)]
    tasks = [asyncio.create_task(program.stream_end(event)) for event in begun]
    async with asyncio.timeout(60):
        await asyncio.gather(*[event.wait() for event in begun])
    assert not any(task.done() for task in tasks), [task.result() for task in tasks if task.done()][:3]
    return tasks


async def _check_ends(tasks: list[asyncio.Task[tuple[float, bytes]]], killed_at: float) -> None:
    ends = await asyncio.gather(*tasks)
    assert max(when for when, _ in ends) - killed_at < 1.0, sorted(when - killed_at for when, _ in ends)[-3:]
    for _, last in ends:
        assert b"error" in last, last
        json.loads(last.removeprefix(b"data: "))


@pytest.mark.parametrize("ranks", [1, 2])
async def test_a_killed_core_under_32_streams(ranks: int) -> None:
    """Also with two tensor-parallel ranks, whose processes are our grandchildren."""
    words = ("--tensor-parallel-size", "2", "--dtype", "float32") if ranks == 2 else ()
    async with running(str(PYTHON), *words, timeout_s=400) as program:
        right, family = await program.answer(), program.family()
        tasks = await _streams(program, 32)
        killed_at = time.monotonic()
        program.core().kill()
        await _check_ends(tasks, killed_at)
        async with asyncio.timeout(400):
            assert await program.answer() == right
        assert await seconds_until_gone(family, 1.0) is not None
        family = program.family()
        program.process.kill()
        assert await seconds_until_gone(family, 5.0) is not None


async def test_a_killed_rank_under_32_streams() -> None:
    words = ("--tensor-parallel-size", "2", "--dtype", "float32")
    async with running(str(PYTHON), *words, timeout_s=400) as program:
        right, family = await program.answer(), program.family()
        ranks = [one for one in family if any("VLLM::Worker" in word for word in [one.name(), *one.cmdline()])]
        assert ranks, [one.cmdline() for one in family]
        tasks = await _streams(program, 32)
        killed_at = time.monotonic()
        ranks[-1].kill()
        await _check_ends(tasks, killed_at)
        async with asyncio.timeout(400):
            assert await program.answer() == right
        assert await seconds_until_gone(family, 1.0) is not None
