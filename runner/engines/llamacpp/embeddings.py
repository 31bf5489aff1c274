"""Embedder: token ids to one L2-normalised vector each, through a context of its own on the same weights.

Pools by itself from per-token embeddings, so a long input goes through in chunks where attention is causal. The way of
pooling is the model's own (its GGUF metadata), else the mean. Does not know generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runner.engines.llamacpp.context import Context, DecodeResult
from runner.engines.llamacpp.library import Library
from runner.engines.llamacpp.model import Model
from runner.engines.llamacpp.settings import Extra
from runner.errors import EngineFailed, RequestError
from runner.types import EmbedRequest, EmbedResult

_POOLING = {"1": "mean", "2": "cls", "3": "last"}
"""llama_pooling_type; 0 is none given, 4 is ranking."""
_CAUSAL_CHUNK = 512
MAX_TOKENS = 8192
"""Of one input, as OpenAI's: the embedding context has a KV cache of its own, beside the one that was planned for."""


def pooling_of(model: Model) -> str | None:
    """`mean`, `cls` or `last`; None for a model that ranks pairs instead of embedding texts."""
    kind = model.metadata(f"{model.architecture}.pooling_type") or "0"
    return None if kind == "4" else _POOLING.get(kind, "mean")


class Embedder:
    """Makes its context on first use: most servers never embed."""

    def __init__(
        self, library: Library, model: Model, extra: Extra, *, context_length: int, threads: int, pooling: str
    ) -> None:
        self._library, self._model, self._extra, self._threads = library, model, extra, threads
        self._pooling = pooling
        self._context: Context | None = None
        self.max_tokens = min(context_length, MAX_TOKENS)

    def embed(self, request: EmbedRequest) -> EmbedResult:
        """Blocking. Raises RequestError for an input that is empty or longer than the context; never truncates."""
        for index, tokens in enumerate(request.inputs):
            self._check(index, tokens)
        vectors = [self._vector(tokens).tobytes() for tokens in request.inputs]
        return EmbedResult(vectors=vectors, prompt_tokens=sum(map(len, request.inputs)))

    def close(self) -> None:
        """Free the context. Safe twice."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def _check(self, index: int, tokens: Sequence[int]) -> None:
        if not tokens:
            raise RequestError(f"input {index} is empty: give at least one token", field="input")
        if len(tokens) > self.max_tokens:
            raise RequestError(
                f"input {index} has {len(tokens):,} tokens; at most {self.max_tokens:,} fit. Split it", field="input"
            )
        if not (min(tokens) >= 0 and max(tokens) < self._model.vocab_size):
            raise RequestError(
                f"input {index} has a token id outside the vocabulary of {self._model.vocab_size:,}", field="input"
            )

    def _vector(self, tokens: Sequence[int]) -> Any:
        context = self._ready()
        chunk_size = context.batch.capacity
        pooled = np.zeros(self._model.embedding_size, np.float64)
        for start in range(0, len(tokens), chunk_size):
            rows = self._rows(context, tokens[start : start + chunk_size], start)
            if self._pooling == "mean":
                pooled += rows.sum(axis=0, dtype=np.float64)
            elif self._pooling == "last" or start == 0:
                pooled = rows[-1 if self._pooling == "last" else 0].astype(np.float64)
        norm = float(np.linalg.norm(pooled))
        if not np.isfinite(norm) or norm == 0.0:
            raise EngineFailed("the model computed no usable embedding (NaN, infinite or zero)")
        return (pooled / norm).astype("<f4")

    def _rows(self, context: Context, tokens: Sequence[int], start: int) -> Any:
        if start == 0:
            context.forget_all()
        context.batch.clear()
        context.batch.add_chunk(tokens, start, 0, outputs="all")
        if context.decode() is not DecodeResult.DONE:
            raise EngineFailed("llama.cpp could not compute an embedding")
        return context.embeddings()

    def _ready(self) -> Context:
        if self._context is None:
            # Without causality every token sees every other one: all must be in one batch.
            chunk = min(_CAUSAL_CHUNK, self.max_tokens) if self._model.is_causal else self.max_tokens
            self._context = Context(
                self._library,
                self._model,
                self._extra,
                num_cells=self.max_tokens,
                num_sequences=1,
                threads=self._threads,
                for_embeddings=True,
                batch_size=chunk,
            )
        return self._context
