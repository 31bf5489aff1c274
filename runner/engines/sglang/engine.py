"""Child side: SGLang's public Engine behind our Engine contract, in the main thread of the child process.

Owns the order of a start (join the other nodes, make the Engine, warm up), streams, and the end. SGLang is imported
when the start begins, after the variables that it reads while it is imported.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import itertools
import os
import signal
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec

from runner.engines import endings, nodes
from runner.engines.base import EngineSpec
from runner.engines.card_guide import CardGuide
from runner.engines.frames import FOLDER_VARIABLE
from runner.engines.seeds import Seeds
from runner.engines.sglang.answer import Answer
from runner.engines.sglang.endings import on_sigquit
from runner.engines.sglang.sampling import (
    NATIVE,
    STEERED,
    Limits,
    check_request,
    is_drawn_by_us,
    is_steered,
    sampling_map,
)
from runner.engines.sglang.settings import LATE_SAMPLING, Settings, cpu_variables, on_cpu, read_settings
from runner.errors import EngineFailed, EngineStartFailed, RequestError, UnsupportedField
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest

_WARM_UP_IDS = [1, 2, 3]


def make(spec: EngineSpec) -> SglangEngine:
    """For ProcessEngine; cheap."""
    return SglangEngine(spec)


class SglangEngine:
    """See runner.engines.base.Engine. A node that is not 0 has no requests: it only follows."""

    def __init__(self, spec: EngineSpec) -> None:
        self.progress: Callable[[str, float | None], None] = lambda phase, share: None
        self._spec = spec
        self._settings: Settings = read_settings(spec)
        self._numbers = itertools.count(1)
        self._open: set[str] = set()
        self._seeds = Seeds(spec.options.seed)
        self._engine: Any = None
        self._nodes: nodes.Nodes | None = None
        self._children: endings.Children | None = None
        self._guide: CardGuide | None = None
        self._limits = Limits(0, 0)
        self._stops: frozenset[int] = frozenset()
        self._processor: str | None = None
        self._max_running = 1

    async def start(self) -> EngineInfo:
        """See Engine. Blocks this loop for as long as SGLang takes: its handlers want the main thread."""
        version = importlib.metadata.version("sglang")
        place = nodes.place_of(self._spec)
        if place is not None:
            self._nodes = nodes.enter(place, {"sglang version": version}, "SGLANG_HOST_IP", self.progress)
        arguments = self._prepare()
        self.progress("importing sglang", None)
        import sglang
        from sglang.srt.server_args import ServerArgs

        arguments = {"log_level": "info", **arguments, "custom_sigquit_handler": on_sigquit}
        check_names(arguments, ServerArgs)
        if not _samples_late():
            arguments["disable_overlap_schedule"] = True
        self.progress("loading the model", None)
        self._engine = sglang.Engine(**arguments)
        self._children = endings.Children(has_nodes=self._nodes is not None)
        if self._spec.options.node_rank:
            return EngineInfo(name=self._spec.name, version=version, max_running=1)
        self._take_over(asyncio.get_running_loop())
        info = self._describe(version)
        self.progress("warming up", None)
        if "embed" not in info.capabilities:
            await self._warm_up()
        return info

    def _prepare(self) -> dict[str, Any]:
        """Variables for SGLang and its processes, and the Engine's arguments with what this machine decides."""
        from runner.engines.sglang.processor_card import CARD_VARIABLE, card_text

        folder = os.environ.get(FOLDER_VARIABLE)
        if folder:
            tempfile.tempdir = os.environ["TMPDIR"] = folder  # it leaves its sockets behind
        os.environ[CARD_VARIABLE] = card_text(self._spec.card)
        arguments, options = dict(self._settings.arguments), self._spec.options
        if "device" not in arguments and not _has_accelerator():
            arguments = on_cpu(arguments, options)
            os.environ.update(cpu_variables(options))
        if arguments.get("device") == "cpu" and self._settings.adapters:
            raise EngineStartFailed(
                "SGLang runs no LoRA adapters on a CPU: it wants memory that only a GPU's driver gives",
                hint="leave --lora out, or use out=llamacpp with a GGUF file",
            )
        return arguments

    def _take_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """SGLang's handlers would kill this process tree after diagnostics, or wait on SIGTERM; ours end it at once."""
        self._engine.tokenizer_manager.auto_create_handle_loop()
        for number in (signal.SIGTERM, signal.SIGQUIT):
            loop.remove_signal_handler(number)
        loop.add_signal_handler(signal.SIGQUIT, on_sigquit)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _describe(self, version: str) -> EngineInfo:
        manager = self._engine.tokenizer_manager
        model, resolved = manager.model_config, self._engine.server_args
        scheduler = self._engine._scheduler_init_result.scheduler_infos[0]
        # SGLang ends an answer when prompt and answer are two short of its context (scheduler.py, max_req_len)
        context = int(scheduler["max_req_input_len"]) + 4
        self._limits = Limits(int(model.vocab_size), context)
        self._stops = frozenset(int(token) for token in model.hf_eos_token_id or ())
        self._guide = CardGuide(self._spec.card, int(model.vocab_size))
        self._max_running = int(
            scheduler.get("max_running_requests") or resolved_value(resolved, "max_running_requests")
        )
        is_generation = bool(getattr(manager, "is_generation", True))
        return EngineInfo(
            name=self._spec.name,
            version=version,
            context_length=context,
            max_running=self._max_running,
            capabilities=self._capabilities(is_generation),
            details={
                "device": str(resolved_value(resolved, "device")),
                "attention": str(resolved_value(resolved, "attention_backend")),
                "KV cache": f"{scheduler['max_total_num_tokens']:,} tokens",
            },
        )

    def _capabilities(self, is_generation: bool) -> tuple[str, ...]:
        if not is_generation:
            return ("embed",)
        steered: tuple[str, ...] = ()
        if self._settings.is_steered:
            from runner.engines.sglang.processor import LlmrunProcessor

            self._processor = LlmrunProcessor.to_str()
            steered = STEERED
        return (*NATIVE, *steered, *(f"adapter:{name}" for name in self._settings.adapters))

    async def _warm_up(self) -> None:
        """The first step of several ranks takes half a minute longer than all others."""
        ids = [token % self._limits.vocab_size for token in _WARM_UP_IDS]
        async with aclosing(self.generate(TokenRequest(id="warm-up", token_ids=ids, max_tokens=1))) as stream:
            async for _ in stream:
                pass

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine."""
        self._check(request)
        if is_drawn_by_us(request):
            sampling = msgspec.structs.replace(request.sampling, seed=self._seeds.of(request))
            request = msgspec.structs.replace(request, sampling=sampling)
        # Of fixed width: SGLang aborts every request whose id begins like the one that is named.
        rid = f"{next(self._numbers):016d}"
        answer = Answer(request, self._ends_of_guided(request))
        self._open.add(rid)
        try:
            async with aclosing(await self._submit(rid, request)) as stream:
                try:
                    async for chunk in stream:
                        delta = answer.push(chunk)
                        if delta is not None:
                            yield delta
                            if delta.finish is not None:
                                return
                finally:
                    if not answer.is_over:
                        self._engine.tokenizer_manager.abort_request(rid)
        except ValueError as error:
            raise RequestError(str(error)) from error
        finally:
            self._open.discard(rid)
        raise EngineFailed("SGLang ended the answer without a finish reason")

    async def _submit(self, rid: str, request: TokenRequest) -> Any:
        sampling = request.sampling
        wanted: dict[str, Any] = {}
        if sampling.logprobs is not None:
            wanted |= {"return_logprob": True, "top_logprobs_num": sampling.logprobs}
        if is_steered(request):
            wanted["custom_logit_processor"] = self._processor
        if request.adapter is not None:
            wanted["lora_path"] = request.adapter
        return await self._engine.async_generate(
            input_ids=list(request.token_ids),
            sampling_params=sampling_map(request, self._stops),
            stream=True,
            rid=rid,
            **wanted,
        )

    def _check(self, request: TokenRequest) -> None:
        if self._spec.options.node_rank:
            raise RequestError("this node only follows; send requests to node 0")
        check_request(request, self._limits)
        if self._processor is None and is_steered(request):
            raise UnsupportedField(
                "with speculative decoding out=sglang honours no seed, grammar, bad words or minimum", field="sampling"
            )
        if request.adapter is not None and request.adapter not in self._settings.adapters:
            raise UnsupportedField(f"there is no adapter {request.adapter!r} here", field="adapter")
        if request.sampling.guided is not None:
            assert self._guide is not None
            self._guide.matcher(request)  # what is wrong with the grammar is told here, not in the scheduler

    def _ends_of_guided(self, request: TokenRequest) -> frozenset[int]:
        """A complete text can only be followed by an end token, also where those are ignored."""
        return frozenset(self._spec.card.eos_token_ids) if request.sampling.guided is not None else frozenset()

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """See Engine."""
        from runner.engines.sglang.embeddings import embed

        for ids in request.inputs:
            check_request(TokenRequest(id=request.id, token_ids=ids, max_tokens=1), self._limits)
        return await embed(self._engine, request)

    async def health(self) -> None:
        """A death ends this process (endings.py)."""

    async def stats(self) -> dict[str, float]:
        """See Engine."""
        running = min(len(self._open), self._max_running)
        return {"num_running": float(running), "num_waiting": float(len(self._open) - running)}

    async def close(self) -> None:
        """See Engine."""
        if self._nodes is not None:
            self._nodes.close()
        if self._children is not None:
            self._children.kill()


def check_names(arguments: dict[str, Any], server_args: Any) -> None:
    """Raises EngineStartFailed for an engine argument that this SGLang does not know."""
    known = set(getattr(server_args, "__struct_fields__", ()) or getattr(server_args, "__dataclass_fields__", ()))
    unknown = sorted(set(arguments) - known) if known else []
    if unknown:
        raise EngineStartFailed(
            f"SGLang knows no engine argument {unknown[0]!r}",
            hint="see `python -m sglang.launch_server --help` for its names, and --extra-engine-args",
        )


def resolved_value(server_args: Any, name: str) -> Any:
    """What SGLang made of an argument that was left to it."""
    resolve = getattr(server_args, "resolved_dict", None)
    return (resolve() if resolve is not None else vars(server_args)).get(name)


def _samples_late() -> bool:
    """Whether this SGLang knows the variable; older ones must do without the overlap scheduler."""
    try:
        from sglang.srt.environ import envs
    except ImportError:
        return False
    return hasattr(envs, LATE_SAMPLING)


def _has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())
