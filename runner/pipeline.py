"""ChatPipeline: the only bridge from an Engine (token ids) to a ChatService (messages and text).

    template -> encode -> limit check -> n fan-out -> engine.generate -> detokenize -> stop strings -> TextDelta

Owns the order of these steps and the merging of choices. Knows no HTTP, no engine library and no tokenizer library.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any, cast

import msgspec

from model_cards.card import ModelCard
from model_cards.detokenizer import Detokenizer
from runner.capabilities import Capabilities, Reporter
from runner.choice import Choice
from runner.engines.base import AdapterEngine, Engine
from runner.errors import EngineFailed, RequestError, UnsupportedField
from runner.prompt import PromptBuilder
from runner.sampling import MAX_SEED, clean_defaults, num_choices, resolve_sampling
from runner.stops import MAX_STOP_CHARS, MAX_STOP_STRINGS, StopStrings
from runner.types import (
    ChatRequest,
    EmbedRequest,
    EmbedResult,
    EngineInfo,
    SamplingParams,
    TextDelta,
    TokenRequest,
    Usage,
)

if TYPE_CHECKING:
    from model_cards.template import ChatTemplate
    from model_cards.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class _Prepared(msgspec.Struct, frozen=True):
    """A request, ready for the engine."""

    requests: list[TokenRequest]
    choices: list[Choice]
    prompt_tokens: int
    echo: str
    warnings: tuple[str, ...]


class ChatPipeline:
    """Serves one model on one engine. `say` takes what the user should read once (default: a log warning)."""

    info: EngineInfo

    def __init__(
        self,
        card: ModelCard,
        engine: Engine,
        *,
        lenient: bool = False,
        tokenizer: Tokenizer | None = None,
        template: ChatTemplate | None = None,
        say: Callable[[str], None] = logger.warning,
    ) -> None:
        self.card = card
        self._engine = engine
        self._lenient = lenient
        self._given_tokenizer = tokenizer
        self._given_template = template
        self._say = say
        self._tokenizer: Tokenizer
        self._prompts: PromptBuilder
        self._capabilities: Capabilities
        self._defaults: dict[str, Any] = {}

    @property
    def engine(self) -> Engine:
        """The engine behind. Only for frontends of several processes, which share its child (--http-workers)."""
        return self._engine

    async def start(self) -> EngineInfo:
        """Start the engine, and load tokenizer and template meanwhile. Raises EngineStartFailed or CardError."""
        loading = asyncio.create_task(asyncio.to_thread(self._load))
        starting = asyncio.create_task(self._engine.start())
        try:
            self.info, (self._tokenizer, template) = await asyncio.gather(starting, loading)
        except BaseException:
            starting.cancel()
            await asyncio.gather(starting, loading, return_exceptions=True)
            await self._engine.close()
            raise
        context_length = self.info.context_length or self.card.context_length
        self._prompts = PromptBuilder(self.card, self._tokenizer, template, context_length, self._load_override)
        self._take(self.info)
        self._resolve_defaults()
        return self.info

    def _load(self) -> tuple[Tokenizer, ChatTemplate]:
        from model_cards.template import fallback_template, load_template
        from model_cards.tokenizer import load_tokenizer

        tokenizer = self._given_tokenizer or load_tokenizer(self.card)
        template = self._given_template or load_template(self.card)
        if template is None:
            template = fallback_template(self.card, lambda text: len(tokenizer.encode(text)) == 1)
            self._say(f"{self.card.name} has no chat template; chats use a plain one (see README, --chat-template)")
        return tokenizer, template

    def _load_override(self, text: str) -> ChatTemplate:
        from model_cards.template import load_template

        template = load_template(self.card, text)
        assert template is not None
        return template

    def _resolve_defaults(self) -> None:
        usable, complaints = clean_defaults(self.card.sampling)
        self._defaults, unhonoured = self._capabilities.split_defaults(usable)
        for complaint in complaints:
            self._say(f"a sampling default of {self.card.name} is ignored: {complaint}")
        if unhonoured:
            names = ", ".join(unhonoured)
            self._say(f"engine {self.info.name!r} does not honour sampling defaults of {self.card.name}: {names}")

    async def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        """One stream; closing it cancels. Raises RequestError before the engine sees anything, EngineError any time."""
        prepared = await self._prepare(request)
        for text_delta in _opening(prepared):
            yield text_delta
        if not prepared.requests:
            return
        if len(prepared.requests) == 1:
            choice = prepared.choices[0]
            last: TextDelta | None = None
            async with contextlib.aclosing(self._engine.generate(prepared.requests[0])) as stream:
                async for delta in stream:
                    shown = choice.push(delta)
                    if shown is not None:
                        if choice.is_finished:
                            last = shown
                            break
                        yield shown
            yield _with_usage(last, prepared)
            return
        async with contextlib.aclosing(self._merge(prepared)) as merged:
            async for text_delta in merged:
                yield text_delta

    async def _merge(self, prepared: _Prepared) -> AsyncGenerator[TextDelta, None]:
        """All choices as they come. One that fails fails all; the queue is short, so a slow reader slows the engine."""
        queue: asyncio.Queue[TextDelta | Exception] = asyncio.Queue(maxsize=2 * len(prepared.choices))
        pairs = zip(prepared.requests, prepared.choices, strict=True)
        tasks = [asyncio.create_task(self._pump(request, choice, queue)) for request, choice in pairs]
        num_open = len(tasks)
        try:
            while num_open:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                num_open -= item.finish is not None
                yield item if num_open else _with_usage(item, prepared)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, request: TokenRequest, choice: Choice, queue: asyncio.Queue[TextDelta | Exception]) -> None:
        last: TextDelta | None = None
        try:
            async with contextlib.aclosing(self._engine.generate(request)) as stream:
                async for delta in stream:
                    text_delta = choice.push(delta)
                    if choice.is_finished:
                        last = text_delta
                        break
                    if text_delta is not None:
                        await queue.put(text_delta)
            await queue.put(last if last is not None else _silent_end())
        except Exception as error:
            await queue.put(error)

    async def _prepare(self, request: ChatRequest) -> _Prepared:
        _check_shape(request)
        if not self.info.makes_text:
            raise UnsupportedField(f"{self.card.name} only embeds: ask it at /v1/embeddings", field="model")
        prompts, tokenizer = self._prompts, self._tokenizer
        num = num_choices(request.sampling)
        sampling = resolve_sampling(request.sampling, self._defaults, tokenizer.vocab_size, tokenizer.encode)
        reporter = Reporter(self._capabilities, lenient=self._lenient)
        sampling = self._capabilities.check_sampling(sampling, reporter)
        if request.echo and sampling.logprobs is not None:
            reporter("echo with logprobs", True)
        adapter = self._capabilities.check_adapter(request.adapter, reporter)
        for field in await prompts.unread(request):
            reporter.unread(field)
        prompt_ids = await prompts.token_ids(request)
        max_tokens = prompts.answer_tokens(len(prompt_ids), request.max_tokens)
        if request.min_tokens > max_tokens:
            message = f"min_tokens is {request.min_tokens}, more than the {max_tokens} that the answer may have"
            raise RequestError(message, field="min_tokens")
        prompts.check_ids(list(request.stop_token_ids), "stop_token_ids")
        eos = () if request.ignore_eos else prompts.eos_token_ids
        token_request = TokenRequest(
            id=request.id,
            token_ids=prompt_ids,
            sampling=sampling,
            max_tokens=max_tokens,
            min_tokens=self._capabilities.check_min_tokens(request.min_tokens, reporter),
            stop_token_ids=tuple(dict.fromkeys((*eos, *request.stop_token_ids))) if request.stop_token_ids else eos,
            adapter=adapter,
        )
        stops = StopStrings(request.stop) if request.stop else None
        return _Prepared(
            requests=_fan_out(token_request, num) if max_tokens else [],
            choices=[Choice(index, request, prompt_ids, tokenizer, stops) for index in range(num)],
            prompt_tokens=len(prompt_ids),
            echo=self._echo(request, is_all=not max_tokens) if request.echo else "",
            warnings=tuple(reporter.warnings),
        )

    def _echo(self, request: ChatRequest, *, is_all: bool) -> str:
        """The prompt's text; what an answer finishes (half a character of ids) is the answer's, unless `is_all`."""
        if isinstance(request.prompt, str):
            return request.prompt
        ids, skip_special = request.prompt or [], request.skip_special_tokens
        if is_all or self._tokenizer.whole_decode is not None:
            return self._tokenizer.decode(ids, skip_special=skip_special)
        return Detokenizer(self._tokenizer, skip_special=skip_special).push(ids)

    async def embed(self, request_id: str, inputs: list[str | list[int]]) -> EmbedResult:
        """One vector for each input. Raises RequestError, or UnsupportedField where the engine embeds nothing."""
        if "embed" not in self._capabilities:
            message = f"engine {self.info.name!r} makes no embeddings; choose another engine or an embedding model"
            raise UnsupportedField(message, field="input")
        if not inputs:
            raise RequestError("input is empty; at least one text is needed", field="input")
        sequences = [await self._prompts.completion_ids(text, "input") for text in inputs]
        for ids in sequences:
            self._prompts.answer_tokens(len(ids), 0)
        return await self._engine.embed(EmbedRequest(id=request_id, inputs=sequences))

    async def load_adapter(self, name: str, path: str, *, replace: bool = False) -> None:
        """See AdapterService."""
        self._take(await self._adapter_engine().load_adapter(name, path, replace=replace))

    async def unload_adapter(self, name: str) -> None:
        """See AdapterService."""
        self._take(await self._adapter_engine().unload_adapter(name))

    def _adapter_engine(self) -> AdapterEngine:
        if "load_adapter" not in self._capabilities:
            message = f"engine {self.info.name!r} loads no adapters while it runs; start it with --lora"
            raise UnsupportedField(message, field="lora_name")
        return cast(AdapterEngine, self._engine)

    def _take(self, info: EngineInfo) -> None:
        self.info, self._capabilities = info, Capabilities(info)

    def render(self, request: ChatRequest) -> str:
        """The prompt text of the request's messages. Raises RequestError."""
        return self._prompts.render(request)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text."""
        return self._tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, token_ids: list[int], *, skip_special: bool = False) -> str:
        """Text of token ids. Raises RequestError for an id that the vocabulary does not have."""
        self._prompts.check_ids(token_ids, "tokens")
        return self._tokenizer.decode(token_ids, skip_special=skip_special)

    async def health(self) -> None:
        """Returns when requests can be served; raises EngineDied or EngineBusy."""
        await self._engine.health()

    async def stats(self) -> dict[str, Any]:
        """Numbers for /metrics, as the engine gives them."""
        return dict(await self._engine.stats())

    async def close(self) -> None:
        """Safe twice, and after a failed start."""
        await self._engine.close()


def _check_shape(request: ChatRequest) -> None:
    """Raises RequestError for counts and stop strings that make no sense."""
    if request.max_tokens is not None and request.max_tokens < (0 if request.echo else 1):
        raise RequestError(f"max_tokens must be at least 1, got {request.max_tokens}", field="max_tokens")
    if request.min_tokens < 0:
        raise RequestError(f"min_tokens must not be negative, got {request.min_tokens}", field="min_tokens")
    if request.echo and request.messages is not None:
        raise RequestError("echo is for completions, not for chats", field="echo")
    if not request.stop:
        return
    if len(request.stop) > MAX_STOP_STRINGS:
        message = f"{len(request.stop):,} stop strings; at most {MAX_STOP_STRINGS:,} are allowed"
        raise RequestError(message, field="stop")
    if not all(request.stop):
        raise RequestError("a stop string is empty", field="stop")
    if sum(map(len, request.stop)) > MAX_STOP_CHARS:
        raise RequestError(f"stop strings of more than {MAX_STOP_CHARS:,} characters in all", field="stop")


def _fan_out(request: TokenRequest, num: int) -> list[TokenRequest]:
    """n requests: ids `id-0`, `id-1` ..., seeds one apart, so that they differ and can be repeated."""
    if num == 1:
        return [request]
    return [
        msgspec.structs.replace(request, id=f"{request.id}-{index}", sampling=_seeded(request.sampling, index))
        for index in range(num)
    ]


def _seeded(sampling: SamplingParams, index: int) -> SamplingParams:
    if sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + index) % (MAX_SEED + 1))


def _usage(prepared: _Prepared) -> Usage:
    """The prompt counts once, whatever n is (as OpenAI does)."""
    return Usage(
        prompt_tokens=prepared.prompt_tokens,
        completion_tokens=sum(choice.num_tokens for choice in prepared.choices),
        cached_tokens=prepared.choices[0].cached_tokens,
    )


def _with_usage(last: TextDelta | None, prepared: _Prepared) -> TextDelta:
    if last is None:
        raise _silent_end()
    return msgspec.structs.replace(last, usage=_usage(prepared))


def _opening(prepared: _Prepared) -> list[TextDelta]:
    """What stands before the answer: warnings, the echoed prompt; with max_tokens = 0 that is all (as vLLM does)."""
    deltas: list[TextDelta] = []
    if prepared.warnings:
        deltas.append(TextDelta(warnings=prepared.warnings))
    if prepared.echo:
        deltas += [TextDelta(index=choice.index, text=prepared.echo) for choice in prepared.choices]
    if not prepared.requests:
        deltas += [TextDelta(index=choice.index, finish="length") for choice in prepared.choices]
        deltas[-1] = _with_usage(deltas[-1], prepared)
    return deltas


def _silent_end() -> EngineFailed:
    return EngineFailed("the engine ended a stream without saying why")
