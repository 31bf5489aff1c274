"""The user's Python file in the child process: runs it, translates requests and what it yields, explains its errors.

`PytokEngine` is an Engine and `PystrSource` a TextSource (hosts.py). The contract is documented in python_file.py.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import runpy
import sys
import traceback
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from runner.engines.base import EngineSpec
from runner.engines.user_chunks import ChunkReader, chat_body
from runner.errors import EngineFailed, EngineStartFailed, UnsupportedField
from runner.types import (
    ChatRequest,
    EmbedRequest,
    EmbedResult,
    EngineInfo,
    FinishReason,
    SamplingParams,
    TextDelta,
    TokenDelta,
    TokenRequest,
)

_MAX_RUNNING = 1024
_FINISH: dict[str, FinishReason] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "cancelled": "cancelled",
    "content_filter": "stop",
}
_ALLOWED = '{"token_ids": [int, ...], "finish_reason": "stop" | "length" | "eos" | "cancelled" (optional)}'


def script_flags(spec: EngineSpec) -> list[str]:
    """sys.argv[1:] of the file: dynamo-run's Flags::as_vec, then what stands after `--`."""
    options = spec.options
    flags: list[tuple[str, object]] = [
        ("--model-path", spec.card.path),
        ("--model-name", spec.card.name or None),
        ("--http-port", spec.http_port),
        ("--tensor-parallel-size", options.tensor_parallel_size),
        ("--base-gpu-id", options.base_gpu_id),
        ("--num-nodes", options.num_nodes),
        ("--node-rank", options.node_rank),
        ("--leader-addr", options.leader_addr),
        ("--extra-engine-args", json.dumps(options.extra) if options.extra else None),
    ]
    given = [part for name, value in flags if value is not None for part in (name, str(value))]
    return [*given, *spec.tail]


class UserFile:
    """One file that has been run; `generate` is its function. Raises EngineStartFailed."""

    def __init__(self, spec: EngineSpec) -> None:
        self.path = spec.argument
        sys.argv = [Path(self.path).name, *script_flags(spec)]
        sys.path.insert(0, str(Path(self.path).parent))
        try:
            names = runpy.run_path(self.path, run_name="__main__")
        except SystemExit as error:
            raise EngineStartFailed(f"{self.path} called sys.exit({error.code!r}) while it was loaded") from error
        except BaseException as error:
            raise EngineStartFailed(f"{self.path} cannot be loaded:\n{self.explain(error)}") from error
        self.generate = names.get("generate")
        if not callable(self.generate):
            found = ", ".join(name for name, value in names.items() if inspect.isfunction(value)) or "none"
            raise EngineStartFailed(f"{self.path} has no `async def generate(request)`; functions there: {found}")

    def explain(self, error: BaseException) -> str:
        """The user's own part of a traceback, then the error."""
        frames = traceback.extract_tb(error.__traceback__)
        first = next((at for at, frame in enumerate(frames) if frame.filename == self.path), len(frames))
        lines = traceback.format_list(frames[first:]) + traceback.format_exception_only(type(error), error)
        return "".join(lines).rstrip()

    async def answers(self, request: dict[str, Any]) -> AsyncGenerator[Any, None]:
        """What `generate` yields. Raises EngineFailed with the user's file and line."""
        try:
            made = self.generate(request)  # type: ignore[misc]
            if inspect.isawaitable(made):
                made = await made
            if not hasattr(made, "__aiter__"):
                raise EngineFailed(
                    f"generate in {self.path} returned {_show(made)}; it must be an async generator "
                    "(`async def` with `yield`)"
                )
            stream: AsyncIterator[Any] = made
            close = getattr(stream, "aclose", None)
            try:
                async for answer in stream:
                    yield answer
            finally:
                if close is not None:
                    await close()
        except EngineFailed:
            raise
        except Exception as error:
            raise EngineFailed(f"{self.path} failed:\n{self.explain(error)}") from error


def _show(value: object) -> str:
    text = repr(value)
    return f"{text[:200]}{'...' if len(text) > 200 else ''} ({type(value).__name__})"


class _UserEngine:
    """What both kinds share."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.file = UserFile(spec)
        self._num_running = 0

    async def start(self) -> EngineInfo:
        """See Engine: the file has been run already."""
        guided = tuple(f"guided.{kind}" for kind in ("json_schema", "json_object", "regex", "grammar", "choice"))
        fields = tuple(name for name in SamplingParams.__struct_fields__ if name != "guided")
        return EngineInfo(
            name=self.spec.name,
            context_length=self.spec.options.context_length or self.spec.card.context_length,
            max_running=self.spec.options.max_running or _MAX_RUNNING,
            capabilities=(*fields, *guided, "min_tokens"),
            details={"file": self.file.path},
        )

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Refused."""
        raise UnsupportedField(f"the engine {self.spec.name} makes no embeddings", field="model")

    async def health(self) -> None:
        """The process answers, so it is well."""

    async def stats(self) -> dict[str, float]:
        """See Engine."""
        return {"num_running": float(self._num_running), "num_waiting": 0.0}

    async def close(self) -> None:
        """Nothing of ours to free; the process ends."""


class PytokEngine(_UserEngine):
    """Token ids in and out."""

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine. Stop ids and max_tokens are enforced here, whatever the file does."""
        reader = _TokenReader(request, self.file.path, self.spec.card.vocab_size)
        self._num_running += 1
        try:
            async with contextlib.aclosing(self.file.answers(self._body(request))) as answers:
                async for answer in answers:
                    delta = reader.read(answer)
                    if delta is not None:
                        yield delta
                        if delta.finish is not None:
                            return
            yield TokenDelta(finish="stop")
        finally:
            self._num_running -= 1

    def _body(self, request: TokenRequest) -> dict[str, Any]:
        """Dynamo's PreprocessedRequest."""
        eos = list(self.spec.card.eos_token_ids)
        sampling = msgspec.structs.asdict(request.sampling)
        guided = sampling.pop("guided")
        sampling["guided_decoding"] = None if guided is None else msgspec.to_builtins(guided)
        ignore_eos = bool(eos) and not set(eos) & set(request.stop_token_ids)
        return {
            "model": self.spec.card.name,
            "token_ids": request.token_ids,
            "stop_conditions": {
                "max_tokens": request.max_tokens,
                "stop": None,
                "stop_token_ids_hidden": list(request.stop_token_ids),
                "min_tokens": request.min_tokens,
                "ignore_eos": ignore_eos,
            },
            "sampling_options": sampling,
            "eos_token_ids": [] if ignore_eos else eos,
            "mdc_sum": self.spec.card.mdcsum,
            "annotations": [],
        }


class _TokenReader:
    """Checks and translates what a pytok file yields for one request."""

    def __init__(self, request: TokenRequest, path: str, vocab_size: int) -> None:
        self._left = request.max_tokens
        self._min_left = request.min_tokens
        self._stops = frozenset(request.stop_token_ids)
        self._path = path
        self._vocab_size = vocab_size

    def read(self, answer: Any) -> TokenDelta | None:
        """One delta, or None for an answer without content. Raises EngineFailed."""
        if not isinstance(answer, dict):
            raise self._wrong(answer)
        unknown = [
            key for key, value in answer.items() if value is not None and key not in ("token_ids", "finish_reason")
        ]
        if unknown:
            raise self._wrong(answer, f"; {', '.join(map(repr, unknown))} cannot be given")
        ids = self._checked(answer)
        kept: list[int] = []
        for token_id in ids:
            if token_id in self._stops and self._min_left <= 0:
                return TokenDelta(kept, "stop", stop_token_id=token_id)
            kept.append(token_id)
            self._left -= 1
            self._min_left -= 1
            if self._left <= 0:
                return TokenDelta(kept, "length")
        finish = self._finish(answer)
        return TokenDelta(kept, finish) if kept or finish else None

    def _checked(self, answer: dict[str, Any]) -> list[int]:
        ids = answer.get("token_ids")
        if ids is None and answer.get("finish_reason") is not None:
            return []
        if not isinstance(ids, (list, tuple)) or any(type(token_id) is not int for token_id in ids):
            raise self._wrong(answer)
        wrong = [token_id for token_id in ids if token_id < 0 or (self._vocab_size and token_id >= self._vocab_size)]
        if wrong:
            raise self._wrong(answer, f"; {wrong[0]} is no token id of this model (0 to {self._vocab_size - 1})")
        return list(ids)

    def _finish(self, answer: dict[str, Any]) -> FinishReason | None:
        reason = answer.get("finish_reason")
        if reason is None:
            return None
        if isinstance(reason, dict) and "error" in reason:
            raise EngineFailed(f"{self._path}: {reason['error']}")
        finish = _FINISH.get(reason) if isinstance(reason, str) else None
        if finish is None:
            raise self._wrong(answer, f"; {reason!r} is no finish reason")
        return finish

    def _wrong(self, answer: Any, more: str = "") -> EngineFailed:
        return EngineFailed(f"generate in {self._path} yielded {_show(answer)}; allowed is {_ALLOWED}{more}")


class PystrSource(_UserEngine):
    """OpenAI requests in, OpenAI chunks out."""

    async def generate(self, request: ChatRequest) -> AsyncGenerator[TextDelta, None]:
        """See hosts.TextSource."""
        reader = ChunkReader(self.file.path)
        self._num_running += 1
        try:
            async with contextlib.aclosing(self.file.answers(chat_body(request, self.spec.card.name))) as answers:
                async for answer in answers:
                    for delta in reader.read(answer):
                        yield delta
            for delta in reader.finish():
                yield delta
        finally:
            self._num_running -= 1
