from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from model_cards.card import ModelCard
from model_cards.errors import CardError
from model_cards.tokenizer import Tokenizer, load_tokenizer
from runner.errors import (
    ContextOverflow,
    EngineDied,
    EngineFailed,
    EngineStartFailed,
    RequestError,
    TemplateFailed,
    UnsupportedField,
)
from runner.pipeline import ChatPipeline
from runner.types import ChatRequest, EngineInfo, SamplingOptions, TextDelta, TokenDelta, TokenLogprob, TokenRequest
from tests.runner.fakes import ALL, BOS, CHATML, EOS, IM_END, Script, ScriptedEngine, make_card, says

USER = [{"role": "user", "content": "Hi"}]
RENDERED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="session")
def tokenizer(toy_card: ModelCard) -> Tokenizer:
    return load_tokenizer(toy_card)


Start = Callable[..., Any]


@pytest.fixture
async def start(toy_card: ModelCard) -> AsyncIterator[Start]:
    """Makes a started pipeline over a script; `engine` is its ScriptedEngine."""
    opened: list[ChatPipeline] = []

    async def make(
        script: Script, *, card: ModelCard = toy_card, lenient: bool = False, say: Any = None, **engine: Any
    ):  # type: ignore[no-untyped-def]
        pipeline = ChatPipeline(card, ScriptedEngine(script, **engine), lenient=lenient, say=say or _fail)
        opened.append(pipeline)
        await pipeline.start()
        return pipeline, pipeline._engine

    yield make
    for pipeline in opened:
        await pipeline.close()


def _fail(message: str) -> None:
    raise AssertionError(f"said: {message}")


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest(id="r", **{"messages": USER, **fields} if "prompt" not in fields else fields)


async def collect(pipeline: ChatPipeline, request: ChatRequest) -> list[TextDelta]:
    async with contextlib.aclosing(pipeline.generate(request)) as stream:
        return [delta async for delta in stream]


def text_of(deltas: list[TextDelta], index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


# --- the prompt


async def test_a_chat_is_rendered_and_its_special_tokens_are_tokens(start: Start, tokenizer: Tokenizer) -> None:
    pipeline, engine = await start(says([72]))
    await collect(pipeline, chat())
    (request,) = engine.requests
    assert request.token_ids == tokenizer.encode(RENDERED)
    assert request.token_ids.count(IM_END) == 1
    assert pipeline.render(chat()) == RENDERED


@pytest.mark.parametrize("written", [0, 1, 2])
async def test_a_chat_has_exactly_one_bos(start: Start, tmp_path: Path, written: int) -> None:
    card = make_card(tmp_path, add_bos=True, chat_template="<s>" * written + CHATML)
    pipeline, engine = await start(says([72]), card=card)
    await collect(pipeline, chat())
    assert engine.requests[0].token_ids.count(BOS) == 1
    assert engine.requests[0].token_ids[0] == BOS


async def test_a_model_without_bos_gets_none(start: Start) -> None:
    pipeline, engine = await start(says([72]))
    await collect(pipeline, chat())
    assert BOS not in engine.requests[0].token_ids


async def test_a_completion_never_sees_the_template(start: Start, tmp_path: Path) -> None:
    pipeline, engine = await start(says([72]), card=make_card(tmp_path, add_bos=True))
    await collect(pipeline, chat(prompt="ab"))
    await collect(pipeline, chat(prompt=[97, 98]))
    assert [request.token_ids for request in engine.requests] == [[BOS, 97, 98], [97, 98]]


async def test_an_empty_prompt_is_bos_or_an_error(start: Start, toy_card: ModelCard) -> None:
    pipeline, engine = await start(says([72]))
    await collect(pipeline, chat(prompt=""))
    await collect(pipeline, chat(prompt=[]))
    assert [request.token_ids for request in engine.requests] == [[BOS], [BOS]]
    without = msgspec.structs.replace(toy_card, bos_token_id=None, special_tokens={})
    pipeline, _ = await start(says([72]), card=without)
    with pytest.raises(RequestError, match="prompt is empty"):
        await collect(pipeline, chat(prompt=""))


@pytest.mark.parametrize("bad", [[-1], [10**6], [True], ["a"], [None], [1.5], pytest.param([1 << 20_000], id="huge")])
async def test_token_ids_are_checked(start: Start, bad: list[Any]) -> None:
    pipeline, engine = await start(says([72]))
    with pytest.raises(RequestError, match="place 0") as caught:
        await collect(pipeline, chat(prompt=bad))
    assert caught.value.field == "prompt"
    assert not engine.requests


@pytest.mark.parametrize("fields", [{"messages": []}, {"messages": None}, {"prompt": "a", "messages": USER}])
async def test_messages_or_a_prompt(start: Start, fields: dict[str, Any]) -> None:
    pipeline, _ = await start(says([72]))
    with pytest.raises(RequestError):
        await collect(pipeline, chat(**fields))


async def test_lone_surrogates_are_refused(start: Start) -> None:
    pipeline, _ = await start(says([72]))
    for request in (chat(messages=[{"role": "user", "content": "a\ud800"}]), chat(prompt="a\ud800")):
        with pytest.raises(RequestError, match=r"surrogate \(U\+D800"):
            await collect(pipeline, request)


async def test_a_template_that_raises_is_the_requests_fault(start: Start, toy_card: ModelCard) -> None:
    card = msgspec.structs.replace(toy_card, chat_template="{{ raise_exception('roles must alternate') }}")
    pipeline, _ = await start(says([72]), card=card)
    with pytest.raises(TemplateFailed, match="roles must alternate"):
        await collect(pipeline, chat())


async def test_a_request_can_bring_its_template_and_its_arguments(start: Start) -> None:
    pipeline, _ = await start(says([72]))
    request = chat(chat_template="{{ messages[0].content }}{{ mood }}", template_args={"mood": "!"})
    assert pipeline.render(request) == "Hi!"
    with pytest.raises(RequestError, match="tools"):
        pipeline.render(chat(template_args={"tools": []}))
    with pytest.raises(RequestError):
        pipeline.render(chat(chat_template="{% if %}"))


async def test_tools_that_the_template_does_not_read_are_refused_by_name(start: Start, toy_card: ModelCard) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    pipeline, engine = await start(says([72]))
    with pytest.raises(UnsupportedField, match="chat template of this model has no place for tools") as caught:
        await collect(pipeline, chat(tools=tools))
    assert caught.value.field == "tools"
    with pytest.raises(UnsupportedField, match="no place for documents"):
        await collect(pipeline, chat(documents=[{"text": "x"}]))
    assert not engine.requests
    reads = "{% if tools %}{{ tools[0].function.name }}{% endif %}{{ messages[0].content }}"
    assert text_of(await collect(pipeline, chat(tools=tools, chat_template=reads)))
    lenient, _ = await start(says([72]), lenient=True)
    assert "no place for tools" in (await collect(lenient, chat(tools=tools)))[0].warnings[0]


async def test_a_model_without_a_template_says_so_once_and_chats(start: Start, toy_card: ModelCard) -> None:
    said: list[str] = []
    card = msgspec.structs.replace(toy_card, chat_template=None)
    pipeline, engine = await start(says([72]), card=card, say=said.append)
    await collect(pipeline, chat())
    await collect(pipeline, chat())
    assert len(said) == 1
    assert "no chat template" in said[0]
    assert "Hi" in pipeline.detokenize(engine.requests[0].token_ids)


# --- the limits


async def test_max_tokens_defaults_to_what_the_context_leaves(start: Start) -> None:
    pipeline, engine = await start(says([72]), context_length=100)
    await collect(pipeline, chat(prompt=[65] * 40))
    await collect(pipeline, chat(prompt=[65] * 40, max_tokens=60))
    assert [request.max_tokens for request in engine.requests] == [60, 60]


@pytest.mark.parametrize(
    ("made_for", "tokens", "max_tokens", "message"),
    [
        (8192, 100, None, "prompt has 100 tokens, the context is 100; shorten it or start with --context-length 128"),
        (8192, 9120, None, "prompt has 9,120 tokens, the context is 100; shorten it"),
        (110, 105, None, "prompt has 105 tokens, the context is 100; shorten it or start with --context-length 110"),
        (100, 105, None, "prompt has 105 tokens, the context is 100; shorten it (this model was made for 100)"),
        (
            8192,
            40,
            61,
            "prompt has 40 tokens and max_tokens is 61, together 101; the context is 100; "
            "ask for at most 60, or shorten the prompt or start with --context-length 128",
        ),
    ],
)
async def test_an_overflow_names_the_numbers_and_what_to_do(
    start: Start, toy_card: ModelCard, made_for: int, tokens: int, max_tokens: int | None, message: str
) -> None:
    card = msgspec.structs.replace(toy_card, context_length=made_for)
    pipeline, engine = await start(says([72]), context_length=100, card=card)
    with pytest.raises(ContextOverflow) as caught:
        await collect(pipeline, chat(prompt=[65] * tokens, max_tokens=max_tokens))
    assert str(caught.value) == message
    error = caught.value
    assert (error.prompt_tokens, error.context_length, error.max_tokens) == (tokens, 100, max_tokens)
    assert not engine.requests


async def test_ten_megabytes_are_refused_fast_and_without_stalling_others(start: Start) -> None:
    pipeline, engine = await start(says([72]), context_length=8192)
    stalls: list[float] = []

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0)
            stalls.append(time.monotonic() - before)
            await asyncio.sleep(0.001)

    ticker = asyncio.create_task(tick())
    for request in (chat(prompt="word " * 2_000_000), chat(messages=[{"role": "user", "content": "ab" * 5_000_000}])):
        started = time.monotonic()
        with pytest.raises(ContextOverflow, match="at least"):
            await collect(pipeline, request)
        assert time.monotonic() - started < 20
    ticker.cancel()
    assert max(stalls) < 5
    assert not engine.requests


async def test_a_long_prompt_that_fits_is_not_refused(start: Start, tokenizer: Tokenizer) -> None:
    text = "Hello world" * 4_000
    needed = len(tokenizer.encode(text))
    pipeline, engine = await start(says([72]), context_length=needed + 1)
    await collect(pipeline, chat(prompt=text))
    assert len(engine.requests[0].token_ids) == needed
    assert engine.requests[0].max_tokens == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("x",) * 10_000}, "stop"),
        ({"stop": ("x" * 20_000,)}, "stop"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids"),
        ({"echo": True}, "echo"),
        ({"sampling": SamplingOptions(temperature=math.nan)}, "temperature"),
        ({"sampling": SamplingOptions(n=0)}, "n"),
    ],
)
async def test_bad_fields_are_refused_before_the_engine(start: Start, fields: dict[str, Any], field: str) -> None:
    pipeline, engine = await start(says([72]))
    with pytest.raises(RequestError) as caught:
        await collect(pipeline, chat(**fields))
    assert caught.value.field == field
    assert not engine.requests


# --- what the engine is asked


async def test_eos_ids_are_merged_in_unless_ignored(start: Start) -> None:
    pipeline, engine = await start(says([72]))
    await collect(pipeline, chat(stop_token_ids=(70, EOS)))
    await collect(pipeline, chat(ignore_eos=True, stop_token_ids=(70,), min_tokens=2))
    assert set(engine.requests[0].stop_token_ids) == {EOS, IM_END, 70}
    assert (engine.requests[1].stop_token_ids, engine.requests[1].min_tokens) == ((70,), 2)


async def test_sampling_defaults_of_the_card(start: Start, toy_card: ModelCard) -> None:
    card = msgspec.structs.replace(toy_card, sampling={"temperature": 0.6, "top_k": 20})
    pipeline, engine = await start(says([72]), card=card)
    await collect(pipeline, chat())
    await collect(pipeline, chat(sampling=SamplingOptions(temperature=0.0)))
    assert [(r.sampling.temperature, r.sampling.top_k) for r in engine.requests] == [(0.6, 20), (0.0, 20)]


async def test_defaults_that_the_engine_does_not_honour_are_said_once(start: Start, toy_card: ModelCard) -> None:
    said: list[str] = []
    card = msgspec.structs.replace(toy_card, sampling={"temperature": 0.6, "top_k": 20, "best": 1})
    pipeline, engine = await start(says([72]), card=card, say=said.append, capabilities=("temperature",))
    await collect(pipeline, chat())
    assert engine.requests[0].sampling.top_k == 0
    assert [word for word in ("top_k", "best") if word in " ".join(said)] == ["top_k", "best"]


async def test_honoured_or_refused(start: Start) -> None:
    pipeline, engine = await start(says([72]), capabilities=("temperature",))
    for fields, named in (({"sampling": SamplingOptions(top_k=5)}, "top_k"), ({"min_tokens": 2}, "min_tokens"),
                          ({"adapter": "sql"}, "adapter")):  # fmt: skip
        with pytest.raises(UnsupportedField, match="scripted") as caught:
            await collect(pipeline, chat(**fields))
        assert caught.value.field == named
    assert not engine.requests


async def test_lenient_reports_in_the_first_delta(start: Start) -> None:
    pipeline, engine = await start(says([72]), capabilities=(), lenient=True)
    deltas = await collect(pipeline, chat(sampling=SamplingOptions(top_k=5), min_tokens=2, adapter="sql"))
    assert [word in " ".join(deltas[0].warnings) for word in ("top_k", "min_tokens", "adapter")] == [True] * 3
    assert not any(delta.warnings for delta in deltas[1:])
    request = engine.requests[0]
    assert (request.sampling.top_k, request.min_tokens, request.adapter) == (0, 0, None)


# --- the answer


async def test_text_finish_and_usage(start: Start) -> None:
    first = TokenDelta([72], None, None, None, 7)
    pipeline, engine = await start(lambda _: [first, TokenDelta([105]), TokenDelta([33], "stop", None, EOS)])
    deltas = await collect(pipeline, chat())
    assert [delta.text for delta in deltas] == ["H", "i", "!"]
    assert [delta.token_ids for delta in deltas] == [[72], [105], [33]]
    assert [delta.finish for delta in deltas] == [None, None, "stop"]
    assert [delta.usage is None for delta in deltas] == [True, True, False]
    usage = deltas[-1].usage
    assert usage is not None
    assert (usage.completion_tokens, usage.cached_tokens) == (4, 7), "the stop token counts"
    assert usage.prompt_tokens == len(engine.requests[0].token_ids)
    assert deltas[-1].stop_reason is None


async def test_a_stop_token_that_was_asked_for_is_the_reason(start: Start) -> None:
    pipeline, _ = await start(says([72], stop_token_id=70))
    assert (await collect(pipeline, chat(stop_token_ids=(70,))))[-1].stop_reason == 70


async def test_never_half_a_character(start: Start) -> None:
    smile = list("😀".encode())
    pipeline, _ = await start(says(*([byte] for byte in smile), [33]))
    deltas = await collect(pipeline, chat())
    assert [delta.text for delta in deltas] == ["😀", "!", ""]
    assert [delta.token_ids for delta in deltas] == [smile, [33], []]


async def test_special_tokens_are_skipped_unless_asked_for(start: Start) -> None:
    pipeline, _ = await start(says([72], [IM_END], [105]))
    assert text_of(await collect(pipeline, chat())) == "Hi"
    assert text_of(await collect(pipeline, chat(skip_special_tokens=False))) == "H<|im_end|>i"


@pytest.mark.parametrize("merged", [1, 2, 3, 100])
async def test_a_stop_string_is_cut_however_the_deltas_are_cut(start: Start, tokenizer: Tokenizer, merged: int) -> None:
    ids = tokenizer.encode("Hello a STOx b STOP never")
    pieces = [ids[at : at + merged] for at in range(0, len(ids), merged)]
    pipeline, engine = await start(says(*pieces))
    deltas = await collect(pipeline, chat(stop=("STOP", "zzz")))
    assert text_of(deltas) == "Hello a STOx b "
    assert (deltas[-1].finish, deltas[-1].stop_reason) == ("stop", "STOP")
    assert deltas[-1].usage is not None
    stopped_at = len(tokenizer.encode("Hello a STOx b STOP"))
    assert deltas[-1].usage.completion_tokens == stopped_at, "tokens after the stop string do not count"
    shown = [token_id for delta in deltas for token_id in delta.token_ids]
    assert tokenizer.decode(shown).startswith("Hello a STOx b")
    assert engine.closed_early == ["r"]


async def test_a_stop_string_never_leaks_in_part_and_is_released(start: Start, tokenizer: Tokenizer) -> None:
    pipeline, _ = await start(says(*([byte] for byte in b"a ENT END b")))
    deltas = await collect(pipeline, chat(stop=("END",)))
    assert [delta.text for delta in deltas if delta.text] == ["a", " ", "ENT", " "]


async def test_the_engine_is_closed_at_once_when_a_stop_string_is_found(start: Start) -> None:
    pipeline, engine = await start(lambda _: [TokenDelta(list(b"abX")), None])
    async with contextlib.aclosing(pipeline.generate(chat(stop=("X",)))) as stream:
        first = await anext(stream)
        assert (first.text, first.finish) == ("ab", "stop")
        assert engine.num_open == 0, "closed before the last delta is handed out"


async def test_held_text_is_released_at_the_end(start: Start) -> None:
    pipeline, _ = await start(says(list(b"a EN"), finish="length", stop_token_id=None))
    deltas = await collect(pipeline, chat(stop=("END",)))
    assert (text_of(deltas), deltas[-1].finish) == ("a EN", "length")


async def test_the_stop_string_can_stay_in_the_output(start: Start) -> None:
    pipeline, _ = await start(says(list(b"abXc")))
    deltas = await collect(pipeline, chat(stop=("X",), include_stop_str_in_output=True))
    assert text_of(deltas) == "abX"


async def test_stop_strings_do_not_count_before_min_tokens(start: Start) -> None:
    pipeline, _ = await start(says(*([byte] for byte in b"XaXbX")))
    deltas = await collect(pipeline, chat(stop=("X",), min_tokens=3))
    assert text_of(deltas) == "XaXb"


async def test_max_tokens_zero_with_echo_is_the_prompt_alone(start: Start) -> None:
    pipeline, engine = await start(says([72]))
    deltas = await collect(pipeline, chat(prompt="ab", echo=True, max_tokens=0))
    assert (text_of(deltas), deltas[-1].finish) == ("ab", "length")
    assert deltas[-1].usage is not None
    assert (deltas[-1].usage.prompt_tokens, deltas[-1].usage.completion_tokens) == (2, 0)
    assert not engine.requests


async def test_echo_goes_before_the_answer(start: Start) -> None:
    pipeline, _ = await start(says([99]))
    assert text_of(await collect(pipeline, chat(prompt="ab", echo=True))) == "abc"
    assert text_of(await collect(pipeline, chat(prompt=[97, 98], echo=True))) == "abc"


def scored(ids: list[int], finish: Any = None) -> TokenDelta:
    return TokenDelta(ids, finish, [TokenLogprob(i, -i / 100, [(i, -i / 100), (66, -3.0)]) for i in ids])


async def test_logprobs_have_text_and_bytes(start: Start) -> None:
    smile = list("😀".encode())
    pipeline, _ = await start(lambda _: [scored([72]), *(scored([byte]) for byte in smile), scored([], "stop")])
    deltas = await collect(pipeline, chat(sampling=SamplingOptions(logprobs=2)))
    assert [len(delta.logprobs or []) for delta in deltas] == [1, 4, 0]
    assert deltas[0].logprobs is not None and deltas[1].logprobs is not None
    entry = deltas[0].logprobs[0]
    assert (entry.token_id, entry.token, entry.bytes, entry.logprob) == (72, "H", [72], -0.72)
    assert [(top.token, top.logprob, top.top) for top in entry.top] == [("H", -0.72, []), ("B", -3.0, [])]
    assert [entry.bytes for entry in deltas[1].logprobs] == [[byte] for byte in smile]


@pytest.mark.parametrize("merged", [1, 2, 3, 4, 100])
async def test_logprobs_stay_with_their_tokens_when_text_is_held_back(start: Start, merged: int) -> None:
    ids = list(b"a ENT b END c")
    pieces = [scored(ids[at : at + merged]) for at in range(0, len(ids), merged)]
    pipeline, _ = await start(lambda _: [*pieces, scored([], "stop")])
    deltas = await collect(pipeline, chat(stop=("END",), sampling=SamplingOptions(logprobs=2)))
    for delta in deltas:
        assert [entry.token_id for entry in delta.logprobs or []] == delta.token_ids
        assert "".join(entry.token for entry in delta.logprobs or []) == delta.text
    assert text_of(deltas) == "a ENT b "


async def test_misaligned_logprobs_are_the_engines_fault(start: Start) -> None:
    pipeline, _ = await start(lambda _: [TokenDelta([72, 73], None, [TokenLogprob(72, -1.0)])])
    with pytest.raises(EngineFailed, match="1 log-probabilities for 2 tokens"):
        await collect(pipeline, chat(sampling=SamplingOptions(logprobs=0)))


# --- several choices


def per_choice(request: TokenRequest) -> list[TokenDelta]:
    number = int(request.id.rpartition("-")[2])
    return [*(TokenDelta([97 + number]) for _ in range(number + 1)), TokenDelta([], "stop", None, EOS)]


async def test_n_choices_come_merged(start: Start) -> None:
    pipeline, engine = await start(per_choice)
    deltas = await collect(pipeline, chat(sampling=SamplingOptions(n=3, seed=41)))
    assert [text_of(deltas, index) for index in range(3)] == ["a", "bb", "ccc"]
    assert sorted((request.id, request.sampling.seed) for request in engine.requests) == [
        ("r-0", 41), ("r-1", 42), ("r-2", 43)]  # fmt: skip
    assert [delta.usage is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == 1 + 2 + 3 + 3
    assert deltas[-1].usage.prompt_tokens == len(engine.requests[0].token_ids)
    assert sorted(delta.index for delta in deltas if delta.finish) == [0, 1, 2]


async def test_one_choice_that_fails_fails_all_and_frees_all(start: Start) -> None:
    def script(request: TokenRequest) -> list[Any]:
        return [TokenDelta([97]), EngineDied("gone")] if request.id == "r-1" else [TokenDelta([97]), None]

    pipeline, engine = await start(script)
    with pytest.raises(EngineDied, match="gone"):
        await collect(pipeline, chat(sampling=SamplingOptions(n=3)))
    assert engine.num_open == 0
    assert sorted(engine.closed_early) == ["r-0", "r-2"]


@pytest.mark.parametrize("n", [1, 4])
async def test_closing_the_stream_closes_the_engines(start: Start, n: int) -> None:
    pipeline, engine = await start(lambda _: [TokenDelta([97]), None])
    async with contextlib.aclosing(pipeline.generate(chat(sampling=SamplingOptions(n=n)))) as stream:
        async for _ in stream:
            break
    assert engine.num_open == 0
    assert len(engine.closed_early) == n


@pytest.mark.parametrize("n", [1, 4])
async def test_cancelling_the_reader_closes_the_engines(start: Start, n: int) -> None:
    pipeline, engine = await start(lambda _: [TokenDelta([97]), None])
    task = asyncio.create_task(collect(pipeline, chat(sampling=SamplingOptions(n=n))))
    while engine.num_open < n:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.num_open == 0


@pytest.mark.parametrize("n", [1, 2])
async def test_an_engine_that_ends_without_a_reason_is_an_error(start: Start, n: int) -> None:
    pipeline, _ = await start(lambda _: [TokenDelta([97])])
    with pytest.raises(EngineFailed, match="without saying why"):
        await collect(pipeline, chat(sampling=SamplingOptions(n=n)))


# --- the rest


async def test_embeddings_take_texts_and_ids(start: Start, toy_card: ModelCard) -> None:
    pipeline, _ = await start(says([72]))
    result = await pipeline.embed("e", ["ab", [97, 98, 99]])
    assert (len(result.vectors), result.prompt_tokens) == (2, 5)
    with pytest.raises(ContextOverflow):
        await pipeline.embed("e", [[97] * 513])
    with pytest.raises(RequestError, match="empty"):
        await pipeline.embed("e", [])
    pipeline, _ = await start(says([72]), capabilities=tuple(name for name in ALL if name != "embed"))
    with pytest.raises(UnsupportedField, match="scripted"):
        await pipeline.embed("e", ["ab"])


async def test_tokenize_and_back(start: Start) -> None:
    pipeline, engine = await start(says([72]))
    ids = pipeline.tokenize("Hello world<|im_end|>")
    assert ids[-1] == IM_END
    assert pipeline.detokenize(ids) == "Hello world<|im_end|>"
    assert pipeline.detokenize(ids, skip_special=True) == "Hello world"
    with pytest.raises(RequestError, match="place 1"):
        pipeline.detokenize([72, -1])
    await pipeline.health()
    assert (await pipeline.stats())["num_running"] == 0
    await pipeline.close()
    assert engine.is_closed


async def test_a_failed_start_closes_the_engine(toy_card: ModelCard) -> None:
    class Broken(ScriptedEngine):
        async def start(self) -> EngineInfo:
            raise EngineStartFailed("no memory")

    engine = Broken(says([72]))
    with pytest.raises(EngineStartFailed, match="no memory"):
        await ChatPipeline(toy_card, engine).start()
    assert engine.is_closed


async def test_a_broken_tokenizer_ends_the_engines_start(tmp_path: Path) -> None:
    class Slow(ScriptedEngine):
        async def start(self) -> EngineInfo:
            await asyncio.Event().wait()
            raise AssertionError("never")

    card = make_card(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    engine = Slow(says([72]))
    with pytest.raises(CardError, match=r"tokenizer\.json"):
        await asyncio.wait_for(ChatPipeline(card, engine).start(), 30)
    assert engine.is_closed
