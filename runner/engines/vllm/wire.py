"""EngineCore's wire, by field names: requests to bytes, steps to records. Knows no sockets; imports no vllm.

EngineCore's structs are positional msgpack arrays whose fields move between releases (vllm/v1/engine/__init__.py), so
both directions are built from the names that the worker reports.
"""

from __future__ import annotations

import time
from array import array
from typing import Any

import msgspec

from runner.engines.vllm.report import Report
from runner.engines.vllm.settings import Adapter
from runner.errors import EngineFailed
from runner.types import TokenLogprob

ADD, ABORT, UTILITY = b"\x00", b"\x01", b"\x03"
DEAD = b"ENGINE_CORE_DEAD"
STOP, LENGTH, ABORTED, ERROR, REPETITION = range(5)
"""EngineCore's finish reasons."""

_RAW_VIEW = 3
_CODES = {"int32": "i", "<i4": "i", "int64": "q", "<i8": "q", "float32": "f", "<f4": "f"}
_REQUEST_DEFAULTS = {
    "client_index": 0,
    "current_wave": 0,
    "priority": 0,
    "resumable": False,
    "abort_immediately": False,
}
_OUTPUT_TYPES: dict[str, tuple[Any, Any]] = {
    "request_id": (str, ""),
    "new_token_ids": (list[int], []),
    "finish_reason": (int | None, None),
    "stop_reason": (int | str | None, None),
}


class WireMismatch(EngineFailed):
    """This vLLM has no field that we need."""


class Wire:
    """Encoder and decoder for one reported vLLM; `client` is our number among its clients."""

    def __init__(self, report: Report, client: int = 0) -> None:
        self._client = client
        self._structs = report.structs
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = _make_decoder(report.structs)

    def add(self, request_id: str, token_ids: list[int] | None, **fields: Any) -> bytes:
        """An ADD body: `sampling_params` (a map) or `pooling_params` (an array), maybe `lora_request`."""
        values = {
            "request_id": request_id,
            "prompt_token_ids": token_ids,
            "arrival_time": time.time(),
            "mm_features": None,
            "sampling_params": None,
            "pooling_params": None,
            "lora_request": None,
            "cache_salt": None,
            "data_parallel_rank": None,
            **({"client_index": self._client} if self._client else {}),
            **fields,
        }
        return self._encoder.encode(self._array("EngineCoreRequest", values))

    def abort(self, request_id: str) -> bytes:
        """An ABORT body."""
        return self._encoder.encode([request_id])

    def utility(self, call_id: int, method: str, arguments: tuple[Any, ...]) -> bytes:
        """A UTILITY body; the reply has the same `call_id`."""
        return self._encoder.encode((self._client, call_id, method, arguments))

    def lora(self, adapter: Adapter) -> list[Any]:
        """A LoRARequest. vLLM tells adapters (and what it has cached of them) apart by name, so that one that takes the
        name of another must have another one there."""
        values = {"lora_name": f"{adapter.name}.{adapter.id}", "lora_int_id": adapter.id, "lora_path": adapter.path}
        return self._array("LoRARequest", values)

    def embed(self) -> list[Any]:
        """PoolingParams of an embedding."""
        return self._array("PoolingParams", {"task": "embed"})

    def decode(self, frames: list[bytes]) -> Any:
        """One step: has `outputs` (records) and `utility_output`. Raises msgspec.DecodeError."""
        return self._decoder.decode(frames[0])

    def _array(self, struct: str, values: dict[str, Any]) -> list[Any]:
        names = self._structs[struct]
        unknown = [name for name, value in values.items() if name not in names and value is not None]
        if unknown:
            raise WireMismatch(f"this vLLM's {struct} has no field {unknown[0]!r}; another vLLM version is needed")
        last = max(at for at, name in enumerate(names) if name in values)
        return [values.get(name, _REQUEST_DEFAULTS.get(name)) for name in names[: last + 1]]


def read_logprobs(fields: list[Any], frames: list[bytes]) -> list[TokenLogprob]:
    """EngineCore's LogprobsLists: rows [tokens, 1 + k], the sampled token first."""
    ids, values = (read_rows(field, frames) for field in fields[:2])
    return [
        TokenLogprob(row_ids[0], row[0], list(zip(row_ids[1:], row[1:], strict=True)))
        for row_ids, row in zip(ids, values, strict=True)
    ]


def read_rows(field: list[Any], frames: list[bytes]) -> list[list[Any]]:
    """A matrix as lists."""
    _, shape, _ = field
    flat = read_array(field, frames).tolist()
    width = shape[-1]
    return [flat[at : at + width] for at in range(0, len(flat), width)]


def read_array(field: list[Any], frames: list[bytes]) -> array[Any]:
    """An array [dtype, shape, bytes or index of an extra frame], flat."""
    dtype, _, data = field
    code = _CODES.get(dtype)
    if code is None:
        raise WireMismatch(f"vLLM sent an array of {dtype}, which llmrun does not read")
    return array(code, bytes(frames[data]) if isinstance(data, int) else data)


def _make_decoder(structs: dict[str, list[str]]) -> msgspec.msgpack.Decoder[Any]:
    names = structs["EngineCoreOutput"]
    output = msgspec.defstruct(
        "Output", [(name, *_OUTPUT_TYPES.get(name, (Any, None))) for name in names], array_like=True, gc=False
    )
    step_types: dict[str, tuple[Any, Any]] = {"outputs": (list[output], [])}  # type: ignore[valid-type]
    step = msgspec.defstruct(
        "Step",
        [(name, *step_types.get(name, (Any, None))) for name in structs["EngineCoreOutputs"]],
        array_like=True,
        gc=False,
    )
    return msgspec.msgpack.Decoder(step, ext_hook=_read_extension)


def _read_extension(code: int, data: memoryview) -> Any:
    return bytes(data) if code == _RAW_VIEW else None
