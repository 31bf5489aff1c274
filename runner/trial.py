"""Trial: an engine is started on the bundled demo model, as a run would start it, and asked what it must know.

Owns the questions and their verdicts. The known answers are the demo model's conformance.json (greedy ids that every
engine must give); which engine and where it is installed is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from model_cards.errors import CardError
from runner.config_file import merge
from runner.engines import EngineEntry
from runner.errors import LlmrunError, RequestError
from runner.launch import start_service
from runner.plan import Plan, make_plan
from runner.run import find_card, preset_aliases
from runner.services import ChatService
from runner.types import ChatRequest, SamplingOptions, TextDelta
from runner.words import parse_words

_BOUND_S = 120.0
"""Of one question or group of questions: an engine that hangs fails."""
_CLOSE_BOUND_S = 20.0
_NUM_ALONE = 4
_NUM_TOGETHER = 32
_ids = itertools.count(1)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a trial."""

    name: str
    is_passed: bool
    detail: str


class _Wrong(Exception):
    """An answer is not the one that is known."""


async def hold_trial(entry: EngineEntry, *, python: str | None = None) -> AsyncGenerator[Verdict, None]:
    """The verdicts, as they come. An engine that does not start has one verdict. Closes the engine.

    `python` is --engine-python.
    """
    began, before = time.monotonic(), _children()
    try:
        plan = _plan(entry, python)
        service, info = await start_service(plan)
    except (LlmrunError, CardError) as error:
        yield Verdict(name="start", is_passed=False, detail=str(error))
        return
    about = f"{info.name} {info.version}, {plan.card.name}, context {info.context_length:,}, {info.max_running} at once"
    try:
        yield Verdict(name="start", is_passed=True, detail=f"{about}; {time.monotonic() - began:.1f} s")
        questions = _Questions(service, is_text=plan.level == "text")
        for name, question in questions.all():
            yield await _verdict(name, question)
    finally:
        closing = _verdict("close", lambda: _close(service, before))
        last = await asyncio.shield(closing)
    yield last


def _plan(entry: EngineEntry, python: str | None) -> Plan:
    given = {} if python is None else {"engine_python": python}
    model = "demo-hf" if "hf" in entry.models else "demo"
    words = parse_words(["in=none", f"out={entry.name}", model], aliases=preset_aliases())
    return make_plan(merge(given, os.environ), words, (), terminal=False, resolve=find_card)


async def _verdict(name: str, question: Callable[[], Awaitable[str]]) -> Verdict:
    try:
        async with asyncio.timeout(_BOUND_S):
            return Verdict(name=name, is_passed=True, detail=await question())
    except TimeoutError:
        return Verdict(name=name, is_passed=False, detail=f"no end after {_BOUND_S:.0f} s")
    except (LlmrunError, _Wrong) as error:
        return Verdict(name=name, is_passed=False, detail=str(error))


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


async def _close(service: ChatService, before: set[psutil.Process]) -> str:
    """`before` are the processes that the engine did not start."""
    began = time.monotonic()
    await service.close()
    while left := _children() - before:
        if time.monotonic() - began > _CLOSE_BOUND_S:
            raise _Wrong(f"processes are left: {', '.join(str(process.pid) for process in left)}")
        await asyncio.sleep(0.05)
    return f"{time.monotonic() - began:.1f} s; no process is left"


class _Questions:
    """What is asked of a running engine. Each question returns what to say of it, and raises _Wrong or LlmrunError."""

    def __init__(self, service: ChatService, *, is_text: bool) -> None:
        self._service = service
        self._is_text = is_text
        known = _read_known()
        self._cases: list[dict[str, Any]] = known["cases"]
        self._stops = tuple(known["stop_token_ids"])

    def all(self) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
        """Name and question, in the order in which they are asked."""
        asked: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("known answers, alone", self.alone),
            ("known answers, together", self.together),
            ("length", self.length),
            ("early close", self.early_close),
            ("too long", self.too_long),
        ]
        return asked if self._is_text else [*asked[:3], ("stop token", self.stop_token), *asked[3:]]

    async def alone(self) -> str:
        """One after the other: the greedy answers that every engine gives."""
        for case in self._cases[:_NUM_ALONE]:
            await self._expect(case)
        return f"{_NUM_ALONE} of {_NUM_ALONE} have the same {self._unit()}"

    async def together(self) -> str:
        """All known answers, many at once."""
        gate = asyncio.Semaphore(_NUM_TOGETHER)

        async def one(case: dict[str, Any]) -> str | None:
            async with gate:
                try:
                    await self._expect(case)
                except _Wrong as error:
                    return str(error)
                return None

        wrong = [row for row in await asyncio.gather(*[one(case) for case in self._cases]) if row is not None]
        if wrong:
            raise _Wrong(f"{len(wrong)} of {len(self._cases)} are wrong; the first: {wrong[0]}")
        return f"{len(self._cases)} of {len(self._cases)} have the same {self._unit()}, {_NUM_TOGETHER} at once"

    async def length(self) -> str:
        """max_tokens is met, and said."""
        case = max(self._cases, key=lambda case: len(case["greedy_ids"]))
        last, ids, _ = await self._ask(case, max_tokens=7)
        if last.finish != "length" or (ids and ids != case["greedy_ids"][:7]):
            raise _Wrong(f"max_tokens 7 ended with {last.finish!r} and ids {ids}; wanted {case['greedy_ids'][:7]}")
        return "max_tokens 7 ends after 7 tokens, with `length`"

    async def stop_token(self) -> str:
        """A stop token ends an answer, and is not part of it."""
        case = max(self._cases, key=lambda case: len(case["greedy_ids"]))
        greedy: list[int] = case["greedy_ids"]
        stop = greedy[5]
        last, ids, _ = await self._ask(case, stop_token_ids=(*self._stops, stop))
        if last.finish != "stop" or ids != greedy[: greedy.index(stop)]:
            raise _Wrong(f"stop token {stop} ended with {last.finish!r} and ids {ids}")
        return "a stop token ends the answer and is not in it"

    async def early_close(self) -> str:
        """Streams that clients leave do no harm to others."""
        case = max(self._cases, key=lambda case: len(case["greedy_ids"]))

        async def leave() -> None:
            async with contextlib.aclosing(self._service.generate(self._request(case, max_tokens=200))) as stream:
                async for _ in stream:
                    return

        await asyncio.gather(*[leave() for _ in range(8)])
        await self._expect(self._cases[0])
        return "8 streams are left after their first token; the next answer is right"

    async def too_long(self) -> str:
        """What does not fit is refused by itself."""
        limit = self._service.info.context_length
        if not limit or limit > 100_000 or self._is_text:
            return "no limit that can be reached"
        case = {**self._cases[0], "prompt_ids": self._cases[0]["prompt_ids"] * (limit // 4)}
        try:
            await self._ask(case, max_tokens=4)
        except RequestError as error:
            await self._expect(self._cases[0])
            return f"refused ({str(error).splitlines()[0]}); the next answer is right"
        raise _Wrong(f"a prompt of {len(case['prompt_ids'])} tokens was served; the context is {limit}")

    async def _expect(self, case: dict[str, Any]) -> None:
        _, ids, text = await self._ask(case, max_tokens=len(case["greedy_ids"]) + 1)
        wanted = [token for token in case["greedy_ids"] if token not in self._stops]
        if text.strip() != case["text"].strip() if self._is_text else ids != wanted:
            asked = case.get("prompt") or case["messages"][-1]["content"]
            raise _Wrong(f"{asked!r}: got {text!r} {ids}; wanted {case['text']!r} {wanted}")

    async def _ask(self, case: dict[str, Any], **fields: Any) -> tuple[TextDelta, list[int], str]:
        """The last delta with a finish, the ids and the text of one answer."""
        last, ids, text = TextDelta(), [], ""
        async with contextlib.aclosing(self._service.generate(self._request(case, **fields))) as stream:
            async for delta in stream:
                ids += delta.token_ids
                text += delta.text
                last = delta if delta.finish is not None else last
        return last, ids, text

    def _request(self, case: dict[str, Any], **fields: Any) -> ChatRequest:
        if self._is_text:
            fields |= {"prompt": case.get("prompt"), "messages": case.get("messages")}
        else:
            fields = {"stop_token_ids": self._stops, **fields, "prompt": case["prompt_ids"]}
        return ChatRequest(id=f"trial-{next(_ids)}", sampling=SamplingOptions(temperature=0.0), **fields)

    def _unit(self) -> str:
        return "text" if self._is_text else "greedy ids"


def _read_known() -> dict[str, Any]:
    from model_cards import presets

    known: dict[str, Any] = json.loads((Path(presets.__file__).parent / "demo" / "conformance.json").read_text())
    return known
