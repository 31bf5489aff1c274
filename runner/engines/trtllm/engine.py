"""Child side: TensorRT-LLM's LLM API behind our Engine contract, in the main thread of the child process.

TensorRT-LLM is imported when the start begins; it starts its ranks by MPI itself. Token ids go in and come out; its
tokenizer is only for grammars.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable
from typing import Any

from runner.engines.admission import check_request
from runner.engines.base import EngineSpec
from runner.engines.seeds import Seeds
from runner.engines.trtllm.answer import Answer
from runner.engines.trtllm.release import Release, check_fit
from runner.engines.trtllm.sampling import Dialect, check_honoured, guide_fields, sampling_fields
from runner.engines.trtllm.settings import Settings, read_settings
from runner.errors import EngineFailed, EngineStartFailed, LlmrunError, RequestError, UnsupportedField
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest

_DEFAULT_MAX_RUNNING = 2048
"""As TensorRT-LLM (max_batch_size)."""
_LOWEST_BIAS = -1e9


def make(spec: EngineSpec) -> TrtllmEngine:
    """For ProcessEngine; cheap."""
    return TrtllmEngine(spec)


class TrtllmEngine:
    """See runner.engines.base.Engine."""

    def __init__(self, spec: EngineSpec) -> None:
        self.progress: Callable[[str, float | None], None] = lambda phase, share: None
        self._spec = spec
        self._settings: Settings = read_settings(spec)
        self._seeds = Seeds(spec.options.seed)
        self._open = 0
        self._llm: Any = None
        self._library: Any = None
        self._dialect: Dialect
        self._capabilities: tuple[str, ...] = ()
        self._context_length = 0
        self._max_running = 1

    async def start(self) -> EngineInfo:
        """See Engine. Blocks this loop for as long as TensorRT-LLM takes."""
        self.progress("importing tensorrt_llm", None)
        import tensorrt_llm

        self._library = tensorrt_llm
        release = Release(version=str(tensorrt_llm.__version__), has_engine_module=_has_engine_module())
        check_fit(release, self._spec.card)
        self.progress("loading the model", None)
        self._llm = self._load(_llm_class(release, self._settings.is_engine))
        self._dialect = self._read_dialect(release)
        self._capabilities = self._dialect.capabilities()
        card = self._spec.card
        own = card.context_length or self._spec.options.context_length or 0
        self._context_length = min(own, self._spec.options.context_length or own)
        self._max_running = self._settings.max_running or _DEFAULT_MAX_RUNNING
        return EngineInfo(
            name=self._spec.name,
            version=release.version,
            context_length=self._context_length,
            max_running=self._max_running,
            capabilities=self._capabilities,
            details={"backend": "TensorRT engine" if self._settings.is_engine else "PyTorch"},
        )

    def _load(self, llm: Any) -> Any:
        arguments = dict(self._settings.arguments)
        if self._settings.kv_cache:
            from tensorrt_llm.llmapi import KvCacheConfig

            arguments["kv_cache_config"] = _made(KvCacheConfig, self._settings.kv_cache)
        try:
            return llm(**arguments)
        except (TypeError, ValueError) as problem:
            raise EngineStartFailed(f"TensorRT-LLM refuses its arguments: {problem}") from problem

    def _read_dialect(self, release: Release) -> Dialect:
        parameters = inspect.signature(self._library.SamplingParams).parameters
        build = self._build_config()
        return Dialect(
            fields=frozenset(parameters),
            is_engine=self._settings.is_engine,
            number=release.number,
            has_tokenizer="tokenizer" in self._settings.arguments,
            gives_logprobs=not self._settings.is_engine or bool(build.get("gather_generation_logits")),
        )

    def _build_config(self) -> dict[str, Any]:
        from pathlib import Path

        from model_cards.hf_card import read_json

        if not self._settings.is_engine:
            return {}
        config = read_json(Path(self._settings.arguments["model"]) / "config.json")
        found = config.get("build_config") if isinstance(config, dict) else None
        return found if isinstance(found, dict) else {}

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine."""
        self._check(request)
        ends = frozenset(self._spec.card.eos_token_ids) if request.sampling.guided is not None else frozenset()
        answer = Answer(request, ends)
        self._open += 1
        result: Any = None
        is_over = False
        try:
            result = self._submit(request, ends)
            async for step in result:
                delta = answer.push(step.outputs[0])
                is_over = bool(step.finished)
                if delta is not None:
                    yield delta
                    if delta.finish is not None:
                        return
            raise EngineFailed("TensorRT-LLM ended the answer without a finish reason")
        except LlmrunError:
            raise
        except Exception as problem:
            raise _error(problem) from problem
        finally:
            self._open -= 1
            if result is not None and not is_over:
                result.abort()

    def _check(self, request: TokenRequest) -> None:
        check_honoured(request, self._capabilities)
        check_request(
            request,
            engine=self._spec.name,
            capabilities=self._capabilities,
            vocab_size=self._spec.card.vocab_size,
            context_length=self._context_length,
        )

    def _submit(self, request: TokenRequest, ends: frozenset[int]) -> Any:
        sampling = request.sampling
        fields = sampling_fields(request, self._seeds.of(request) % 2**64, ends)
        if "seed" in fields and not self._dialect.knows("seed"):
            del fields["seed"]
        if sampling.logit_bias:
            fields["embedding_bias"] = self._bias(sampling.logit_bias)
        if sampling.guided is not None:
            from tensorrt_llm.llmapi import GuidedDecodingParams

            fields["guided_decoding"] = GuidedDecodingParams(**guide_fields(sampling.guided))
        params = self._library.SamplingParams(**self._dialect.translate(fields))
        return self._llm.generate_async(list(request.token_ids), sampling_params=params, streaming=True)

    def _bias(self, bias: dict[int, float]) -> Any:
        """[vocabulary] float32."""
        import torch

        row = torch.zeros(self._spec.card.vocab_size, dtype=torch.float32)
        for token, value in bias.items():
            row[token] = max(value, _LOWEST_BIAS)
        return row

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """See Engine."""
        raise UnsupportedField("out=trtllm makes no embeddings", field="model")

    async def health(self) -> None:
        """A death ends this process; TensorRT-LLM's own errors end the streams that meet them."""

    async def stats(self) -> dict[str, float]:
        """See Engine."""
        running = min(self._open, self._max_running)
        return {"num_running": float(running), "num_waiting": float(self._open - running)}

    async def close(self) -> None:
        """See Engine."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()


def _llm_class(release: Release, is_engine: bool) -> Any:
    if is_engine and release.number >= (1, 0):
        from tensorrt_llm._tensorrt_engine import LLM as EngineLlm

        return EngineLlm
    from tensorrt_llm import LLM

    return LLM


def _has_engine_module() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorrt_llm._tensorrt_engine") is not None


def _made(kind: Any, fields: dict[str, Any]) -> Any:
    """A config of TensorRT-LLM. Raises EngineStartFailed for a field that this release does not know (1.0 drops it)."""
    known = getattr(kind, "model_fields", None) or inspect.signature(kind).parameters
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise EngineStartFailed(f"this TensorRT-LLM's {kind.__name__} has no {', '.join(unknown)}; leave it out")
    try:
        return kind(**fields)
    except (TypeError, ValueError) as problem:
        raise EngineStartFailed(f"this TensorRT-LLM's {kind.__name__} refuses {fields}: {problem}") from problem


def _error(problem: Exception) -> Exception:
    """Its ValueError and RequestError (tensorrt_llm.executor.utils) are about one request; all else is the engine's."""
    line = " ".join(str(problem).split())[:500]
    if isinstance(problem, ValueError) or type(problem).__name__ == "RequestError":
        return RequestError(f"TensorRT-LLM refused the request: {line}")
    return EngineFailed(f"TensorRT-LLM failed at this request: {type(problem).__name__}: {line}")
