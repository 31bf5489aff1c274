"""Child side: embeddings of SGLang's Engine (a model that SGLang runs as an embedding model)."""

from __future__ import annotations

import math
from array import array
from typing import Any

from runner.types import EmbedRequest, EmbedResult


async def embed(engine: Any, request: EmbedRequest) -> EmbedResult:
    """All inputs in one batch. Engine.async_encode takes text only; this is what it calls."""
    from sglang.srt.managers.io_struct import EmbeddingReqInput

    wanted = EmbeddingReqInput(input_ids=[list(ids) for ids in request.inputs])
    rows = await engine.tokenizer_manager.generate_request(wanted, None).__anext__()
    vectors = [unit_vector(row["embedding"]) for row in rows]
    return EmbedResult(vectors=vectors, prompt_tokens=sum(map(len, request.inputs)))


def unit_vector(values: list[float]) -> bytes:
    """float32 little-endian bytes of the vector, made 1 long (0 stays 0)."""
    length = math.sqrt(math.fsum(value * value for value in values)) or 1.0
    return array("f", [value / length for value in values]).tobytes()
