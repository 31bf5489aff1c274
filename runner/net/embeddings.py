"""Requests for embeddings and their vectors, as Dynamo's workers take and give them (PreprocessedEmbeddingRequest,
EmbeddingsEngineOutput): token ids in, one list of numbers a sequence out.

Between two llmrun the vectors are float32 bytes in several items, a fraction of their size as numbers.
"""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Iterator
from typing import Any

import msgspec

from runner.errors import EngineFailed, RequestError
from runner.net.messages import check_ids
from runner.types import EmbedRequest, EmbedResult

MAX_INPUTS = 2048
"""OpenAI's, and that of /v1/embeddings here."""
_ITEM_BYTES = 1 << 20
"""Of vectors in one item between two llmrun."""
_VECTORS = "llmrun_vectors"


def encode_embedding(request: EmbedRequest, model: str, mdcsum: str) -> dict[str, Any]:
    """A PreprocessedEmbeddingRequest."""
    return {
        "model": model,
        "token_ids": request.inputs,
        "encoding_format": "float",
        "dimensions": None,
        "mdc_sum": mdcsum or None,
        "annotations": [],
        "llmrun": {},
    }


def is_embedding(body: Any) -> bool:
    """Whether a body asks for embeddings: several sequences of ids, not one."""
    ids = body.get("token_ids") if isinstance(body, dict) else None
    return isinstance(ids, list) and bool(ids) and isinstance(ids[0], list)


def decode_embedding(body: dict[str, Any], request_id: str) -> EmbedRequest:
    """Raises RequestError."""
    try:
        inputs = msgspec.convert(body["token_ids"], list[list[int]])
        if not 0 < len(inputs) <= MAX_INPUTS or not all(inputs):
            raise ValueError(f"1 to {MAX_INPUTS} sequences of token ids are wanted, none of them empty")
        check_ids(*inputs)
        if body.get("dimensions") is not None:
            raise ValueError("dimensions: vectors are not shortened; leave it out")
        return EmbedRequest(id=request_id, inputs=inputs)
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"the request cannot be read: {error!r:.500}", field="input") from None


def encode_vectors(result: EmbedResult, *, is_own: bool) -> Iterator[dict[str, Any]]:
    """The items of an answer, the last one with the usage. `is_own`: for an ingress of llmrun."""
    usage = {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens}
    if not is_own:
        yield {"embeddings": [_floats(vector) for vector in result.vectors], **usage}
        return
    at_once = max(1, _ITEM_BYTES // max(1, len(result.vectors[0]))) if result.vectors else 1
    for at in range(0, len(result.vectors), at_once):
        yield {_VECTORS: result.vectors[at : at + at_once]}
    yield {_VECTORS: [], **usage}


class VectorReader:
    """The vectors of one answer, item by item."""

    def __init__(self, num_inputs: int) -> None:
        self._num_inputs = num_inputs
        self._vectors: list[bytes] = []
        self._prompt_tokens: int | None = None

    def read(self, item: Any) -> None:
        """Raises EngineFailed."""
        try:
            if _VECTORS in item:
                self._vectors += [_bytes(vector) for vector in item[_VECTORS]]
            else:
                self._vectors += [_packed(vector) for vector in item["embeddings"]]
            if item.get("prompt_tokens") is not None:
                self._prompt_tokens = msgspec.convert(item["prompt_tokens"], int)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise EngineFailed(f"the worker sent what are no embeddings: {error!r:.500}") from None
        if len(self._vectors) > self._num_inputs:
            raise EngineFailed(f"the worker sent more vectors than the {self._num_inputs} that were asked for")

    @property
    def is_complete(self) -> bool:
        """Whether the usage has come, which is last."""
        return self._prompt_tokens is not None

    def result(self) -> EmbedResult:
        """Raises EngineFailed when something is missing."""
        sizes = {len(vector) for vector in self._vectors}
        if self._prompt_tokens is None or len(self._vectors) != self._num_inputs or len(sizes) != 1 or 0 in sizes:
            raise EngineFailed(
                f"the worker sent {len(self._vectors)} vectors of {sorted(sizes)} bytes; "
                f"{self._num_inputs} of one size are wanted"
            )
        return EmbedResult(vectors=self._vectors, prompt_tokens=self._prompt_tokens)


def _floats(vector: bytes) -> list[float]:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _packed(vector: Any) -> bytes:
    if not isinstance(vector, list):
        raise TypeError("a vector is no list of numbers")
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _bytes(vector: Any) -> bytes:
    """MessagePack has bytes; in JSON they are base64."""
    data = base64.b64decode(vector, validate=True) if isinstance(vector, str) else vector
    if not isinstance(data, bytes) or len(data) % 4:
        raise TypeError("a vector is no row of float32")
    return data
