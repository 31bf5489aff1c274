"""The contracts of engines. Token ids in, token ids out; text, templates and HTTP are not known here.

Two shapes exist. `Engine` is what the launcher holds (asyncio). `StepEngine` is what a child process may host: a
blocking object driven by ONE engine thread, which loads the model and runs every step (see child.py).

Rules of a stream (tests/conformance.py checks them on every engine): ids are new ones only; exactly one delta carries
`finish` and it is the last; the stop token is not in `token_ids`; closing early frees the request within 1 s; an engine
failure raises, never hangs, never ends silently; streams are independent; the same seed gives the same ids.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

import msgspec

from model_cards.card import ModelCard
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the user chose for the engine; None is automatic. Engines refuse what they cannot honour."""

    context_length: int | None = None
    """Tokens of one request (prompt + answer)."""
    max_running: int | None = None
    """Requests at once (`--parallel`, `--max-num-seqs`)."""
    max_queue: int | None = None
    """Waiting requests before EngineBusy; None is unbounded."""
    threads: int | None = None
    gpu_layers: int | None = None
    """-1 is all."""
    kv_cache_block_size: int | None = None
    tensor_parallel_size: int = 1
    base_gpu_id: int = 0
    num_nodes: int = 1
    node_rank: int = 0
    leader_addr: str | None = None
    num_frontends: int = 1
    """Processes of this launcher that speak to the engine: with --http-workers, one more than these."""
    data_parallel_size: int = 1
    """Equal engines side by side."""
    engine_python: str | None = None
    """The interpreter of the engine's own environment."""
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    kv_cache_dtype: str | None = None
    gpu_memory_utilization: float | None = None
    max_batched_tokens: int | None = None
    """Tokens of one engine step."""
    seed: int | None = None
    adapters: tuple[str, ...] = ()
    """LoRA files, `PATH` or `NAME=PATH`."""
    allow_runtime_lora: bool = False
    """Adapters may be loaded and unloaded while the engine runs (AdapterEngine)."""
    start_timeout_s: float = 600.0
    max_restarts: int = 3
    """Restarts of a dead child within ten minutes; 0 is --no-restart."""
    vllm_mode: str | None = None
    """`worker` (our guarded one) or `headless` (`vllm serve --headless`)."""
    extra: dict[str, Any] = {}
    """--extra-engine-args; wins over everything else. An unknown key is an error."""


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that a factory needs: `out=NAME:ARGUMENT`, the card, the options, what follows `--`."""

    name: str
    card: ModelCard
    argument: str = ""
    options: EngineOptions = EngineOptions()
    tail: tuple[str, ...] = ()
    http_port: int | None = None
    """Only for sys.argv of pystr and pytok files."""


class Engine(Protocol):
    """The launcher's view. A factory `make_engine(spec: EngineSpec) -> Engine` makes one, cheaply and without I/O."""

    async def start(self) -> EngineInfo:
        """Ready when it returns. Raises EngineStartFailed."""

    def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """One stream; closing the generator is the only cancel. Raises EngineError or RequestError."""

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Only with the capability `embed`; else raises UnsupportedField."""

    async def health(self) -> None:
        """Returns when requests can be served; raises EngineDied or EngineBusy."""

    async def stats(self) -> dict[str, float]:
        """Numbers for /metrics: num_running, num_waiting, kv_used_tokens, kv_total_tokens ...; NAME@WORKER
        is of one worker of several."""

    async def close(self) -> None:
        """Safe twice, and after a failed start."""


class AdapterEngine(Protocol):
    """What an Engine with the capability `load_adapter` can do besides. A name is free again as soon as it is unloaded;
    requests that run with an adapter keep it until they end."""

    async def load_adapter(self, name: str, path: str, *, replace: bool = False) -> EngineInfo:
        """Load a LoRA adapter, requests may name it when this returns; with `replace` in place of the one of that name.

        Returns what the engine can do now. Raises RequestError (UnknownAdapter where there is none at `path`).
        """

    async def unload_adapter(self, name: str) -> EngineInfo:
        """Forget an adapter. Raises UnknownAdapter."""


class StepOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one step made for one request: a delta, or the error that ended it."""

    id: str
    delta: TokenDelta | None = None
    error: str | None = None
    error_kind: str = ""
    """`request` (RequestError: the client's fault) or `engine` (EngineFailed)."""


class StepEngine(Protocol):
    """The child's view of a blocking engine. Every method but `interrupt` runs in the one engine thread."""

    def start(self, spec: EngineSpec) -> EngineInfo:
        """Load the model. May print progress to stderr (the log). Any exception is a failed start."""

    def add(self, request: TokenRequest) -> None:
        """Queue a request. Raises RequestError for one that can never run."""

    def cancel(self, request_id: str) -> None:
        """Forget a request; unknown ids are fine."""

    def has_work(self) -> bool:
        """Whether `step` would do anything."""

    def step(self) -> list[StepOutput]:
        """One engine step for all running requests. An exception here is fatal for the process."""

    def embed(self, request: EmbedRequest) -> EmbedResult:
        """Blocking; called between steps."""

    def interrupt(self) -> None:
        """Thread-safe: let a long step return early because something was cancelled. May do nothing."""

    def stats(self) -> dict[str, float]:
        """As Engine.stats."""

    def close(self) -> None:
        """Free everything."""
