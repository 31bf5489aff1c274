"""Child side: mistral.rs' Runner behind our Engine contract.

Its iterators block, so each running request has a thread; as many run as mistral.rs has slots, the rest waits here.
Giving up an iterator is mistral.rs' cancel: it notices with the next token.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from model_cards.tokenizer import load_tokenizer
from runner.engines.admission import check_request
from runner.engines.base import EngineSpec
from runner.engines.failures import describe
from runner.engines.mistralrs.answer import Answer
from runner.engines.mistralrs.sampling import CAPABILITIES, check_honoured, request_fields
from runner.engines.mistralrs.settings import Settings, read_settings
from runner.engines.mistralrs.tokenizer_file import write_plain
from runner.engines.mistralrs.vocabulary import Vocabulary
from runner.errors import EngineFailed, EngineStartFailed, LlmrunError, RequestError, UnsupportedField
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest

_TEMPLATE = "{{ messages[0]['content'] }}"
"""The only streaming call is a chat; ours has one message, the whole prompt."""
_PROBE = "x"
_REQUEST_WORDS = ("grammar", "prompt", "max_tokens", "schema", "regex")
"""In mistral.rs' words for what is the request's fault."""


def make(spec: EngineSpec) -> MistralrsEngine:
    """For ProcessEngine; cheap."""
    return MistralrsEngine(spec)


class MistralrsEngine:
    """See runner.engines.base.Engine."""

    def __init__(self, spec: EngineSpec) -> None:
        self.progress: Callable[[str, float | None], None] = lambda phase, share: None
        self._spec = spec
        self._settings: Settings = read_settings(spec)
        self._threads = ThreadPoolExecutor(self._settings.max_running, thread_name_prefix="stream")
        self._turn = threading.Lock()
        """The Runner's methods (not its iterators) refuse to be called by two threads at once."""
        self._prefill = threading.Lock()
        """Two prompts of a GGUF model in one step fail on the CPU (0.9.5: "input tensor is not contiguous")."""
        self._num_open = 0
        self._num_running = 0
        self._slots = asyncio.Semaphore(self._settings.max_running)
        self._runner: Any = None
        self._vocabulary: Vocabulary
        self._special_texts: dict[int, str] = {}
        self._renamed: dict[int, bytes] = {}
        self._context_length = 0
        self._folder = tempfile.TemporaryDirectory(prefix="llmrun-mistralrs-")

    async def start(self) -> EngineInfo:
        """See Engine."""
        self.progress("loading the model", None)
        self._runner = await asyncio.to_thread(self._load)
        tokenizer = await asyncio.to_thread(load_tokenizer, self._spec.card)
        own = self._runner.max_sequence_length() or self._spec.card.context_length
        self._context_length = min(own, self._spec.options.context_length or own)
        self._vocabulary = Vocabulary(tokenizer, self._runner, renamed=self._renamed)
        self._special_texts = {token: self._vocabulary.text_of(token) for token in self._vocabulary.hidden_ids}
        self.progress("warming up", None)
        self._vocabulary.num_added = await asyncio.to_thread(self._num_added)
        return EngineInfo(
            name=self._spec.name,
            version=_version(),
            context_length=self._context_length,
            max_running=self._settings.max_running,
            capabilities=CAPABILITIES,
            details={"weights": self._settings.kind},
        )

    def _load(self) -> Any:
        import mistralrs

        settings = self._settings
        template = Path(self._folder.name) / "prompt.jinja"
        template.write_text(_TEMPLATE)
        which = {**self._plain_tokenizer(), **settings.which}
        if settings.dtype is not None:
            which["dtype"] = getattr(mistralrs.ModelDType, settings.dtype)
        arguments = dict(settings.arguments)
        if settings.kv_dtype is not None:
            arguments["pa_cache_type"] = getattr(mistralrs.PagedCacheType, settings.kv_dtype)
        try:
            chosen = getattr(mistralrs.Which, settings.kind)(**which)
            return mistralrs.Runner(which=chosen, jinja_explicit=str(template), **arguments)
        except (ValueError, TypeError) as problem:
            raise EngineStartFailed(f"mistral.rs cannot load {self._spec.card.name}: {problem}") from problem

    def _plain_tokenizer(self) -> dict[str, str]:
        """For folders with a tokenizer.json; mistral.rs takes no other vocabulary for a GGUF file than its own."""
        card, target = self._spec.card, Path(self._folder.name) / "tokenizer.json"
        is_ours = self._settings.kind == "Plain" and "tokenizer_json" not in self._settings.which
        if not is_ours or card.tokenizer is None or Path(card.tokenizer.path).name != target.name:
            return {}
        kept_names = set(card.special_tokens.values())
        self._renamed = write_plain(Path(card.tokenizer.path), target, card.eos_token_ids, kept_names)
        return {"tokenizer_json": str(target)}

    def _num_added(self) -> int:
        """How many tokens mistral.rs puts before a prompt, told by a first answer of one token."""
        length = len(self._runner.tokenize_text(_PROBE, False, None))
        fields = {"max_tokens": 1, "temperature": 0.0, "ignore_eos": True}
        for chunk in self._open(_PROBE, fields):
            if chunk.usage is not None:
                return max(0, int(chunk.usage.prompt_tokens) - length)
        return 0

    def _open(self, prompt: str, fields: dict[str, Any]) -> Any:
        import mistralrs

        request = mistralrs.ChatCompletionRequest(messages=prompt, model="default", stream=True, **fields)
        with self._turn:
            return self._runner.send_chat_completion_request(request)

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine."""
        self._check(request)
        answer, fields = self._prepare(request)
        self._num_open += 1
        try:
            await self._slots.acquire()
        except BaseException:
            self._num_open -= 1
            raise
        stream = _Stream(asyncio.get_running_loop())
        self._num_running += 1
        self._threads.submit(self._pump, request, fields, stream).add_done_callback(stream.when_done(self._free))
        try:
            while (chunk := await stream.items.get()) is not None:
                if isinstance(chunk, Exception):
                    raise chunk
                delta = answer.push(chunk)
                if delta is not None:
                    yield delta
                    if delta.finish is not None:
                        return
            raise EngineFailed("mistral.rs ended the answer without a finish reason")
        finally:
            stream.is_given_up.set()

    def _free(self) -> None:
        """In the loop, once the thread of a request has ended and with it the request in mistral.rs."""
        self._num_running -= 1
        self._num_open -= 1
        self._slots.release()

    def _check(self, request: TokenRequest) -> None:
        check_honoured(request)
        check_request(
            request,
            engine=self._spec.name,
            capabilities=CAPABILITIES,
            vocab_size=self._spec.card.vocab_size,
            context_length=self._context_length,
        )

    def _prepare(self, request: TokenRequest) -> tuple[Answer, dict[str, Any]]:
        ends = set(self._spec.card.eos_token_ids) if request.sampling.guided is not None else set()
        hidden = self._vocabulary.hidden_ids
        stops = sorted((ends | set(request.stop_token_ids)) & hidden)
        texts = [self._special_texts[token] for token in stops]
        forbidden = set(hidden) - set(stops)
        if request.sampling.guided is not None:
            forbidden |= self._vocabulary.renamed_ids  # a grammar would take their new names for text
        fields = request_fields(request, texts, forbidden, self._spec.card.vocab_size)
        return Answer(request, self._vocabulary, stops), fields

    def _pump(self, request: TokenRequest, fields: dict[str, Any], stream: _Stream) -> None:
        """In a thread: one request from its first token to its last, or until it is given up."""
        try:
            with self._turn:
                prompt = self._vocabulary.prompt_text(request.token_ids)
            with contextlib.ExitStack() as until_first:
                if self._settings.kind == "GGUF":
                    until_first.enter_context(self._prefill)
                for chunk in self._open(prompt, fields):
                    until_first.close()
                    if stream.is_given_up.is_set():
                        return
                    stream.put(chunk)
            stream.put(None)
        except ValueError as problem:
            stream.put(_error(problem))
        except BaseException as problem:  # the thread ends here; a panic of Rust is no Exception
            is_ours = isinstance(problem, LlmrunError)
            stream.put(problem if is_ours else EngineFailed(f"mistral.rs failed at this request: {describe(problem)}"))

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """See Engine."""
        raise UnsupportedField("out=mistralrs makes no embeddings", field="model")

    async def health(self) -> None:
        """mistral.rs has no sign of life of its own; a death ends this process."""

    async def stats(self) -> dict[str, float]:
        """See Engine."""
        return {"num_running": float(self._num_running), "num_waiting": float(self._num_open - self._num_running)}

    async def close(self) -> None:
        """See Engine."""
        self._folder.cleanup()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Stream:
    """Chunks on their way from a thread to the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.items: asyncio.Queue[Any] = asyncio.Queue()
        self.is_given_up = threading.Event()
        self._loop = loop

    def put(self, item: Any) -> None:
        self._loop.call_soon_threadsafe(self.items.put_nowait, item)

    def when_done(self, call: Callable[[], None]) -> Callable[[Any], None]:
        def done(future: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
                self._loop.call_soon_threadsafe(call)

        return done


def _error(problem: ValueError) -> RequestError | EngineFailed:
    """mistral.rs raises ValueError for everything; its backtraces are not for clients."""
    line = (str(problem).splitlines() or [""])[0]
    if any(word in line.lower() for word in _REQUEST_WORDS):
        return RequestError(f"mistral.rs refused the request: {line}")
    return EngineFailed(f"mistral.rs failed at this request: {line}")


def _version() -> str:
    try:
        return importlib.metadata.version("mistralrs")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
