"""Child side: nothing that a client sends can kill or deafen EngineCore; it becomes an error of that one request.

EngineCore trusts its client (vLLM validates in its front half, which is not here): an undecodable request ends its
input thread while the process lives on, a bad length or id ends the process. Owns the patches of
vllm/v1/engine/core.py and one method more (`llmrun_stats`); seen working on 0.32.
"""

from __future__ import annotations

import functools
import inspect
import multiprocessing.connection
import os
import sys
import threading
import time
from typing import Any

import msgspec
import vllm.v1.engine.core as core
from vllm.platforms import current_platform
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType, FinishReason

from runner.engines.vllm.config import RANK
from runner.engines.vllm.sharing import Sharing

DEAF_EXIT = 70
"""Exit code when a thread of EngineCore ends by an error: the launcher must see a death, not silence."""
_NODES_SPEAK_S = 3.0
"""How long a failure on node 0 waits for the news that another node is gone."""


def install(sharing: Sharing) -> None:
    """Patch EngineCore in this process, before it runs. `sharing` is told how to end a client's requests."""
    threading.excepthook = _die
    core.MsgpackDecoder = _make_decoder(core.MsgpackDecoder)
    process = core.EngineCoreProc
    original = process.preprocess_add_request

    def preprocess(self: Any, request: EngineCoreRequest) -> Any:
        sharing.abort = functools.partial(abort_client, self)
        check(self, request)
        return original(self, request)

    process.preprocess_add_request = preprocess
    process.add_request = _adding_once(process.add_request)
    process._handle_request_preproc_error = _refuse
    process.llmrun_stats = stats
    _watch_ranks()


def _adding_once(original: Any) -> Any:
    """In the thread of the steps, since two of one id may come before the first is known to the scheduler."""

    def add(self: Any, request: Any, *args: Any, **options: Any) -> None:
        if request.request_id in self.scheduler.requests:  # without an answer: that would end the one that runs
            sys.stderr.write(f"[llmrun] request {request.request_id} is refused: one of this id is running\n")
            return
        original(self, request, *args, **options)

    return add


def let_nodes_speak_first() -> None:
    """On node 0 of several: an EngineCore that fails may have failed because a node is gone, which nodes.py tells."""
    original = core.EngineCoreProc._send_engine_dead

    def send(self: Any) -> None:
        time.sleep(_NODES_SPEAK_S)
        original(self)

    core.EngineCoreProc._send_engine_dead = send


def _watch_ranks() -> None:
    """A dead rank ends this process at once: vLLM (0.32) waits for the others, for nine seconds, before it says so.

    The process group's guard (guard.py) ends the other ranks.
    """
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    original = MultiprocExecutor.start_worker_monitor

    def start(self: Any, inline: bool = False) -> None:
        if inline:
            original(self, inline=True)
            return
        threading.Thread(target=_wait_for_ranks, args=(self, self.workers), daemon=True).start()

    MultiprocExecutor.start_worker_monitor = start


def _wait_for_ranks(executor: Any, workers: list[Any]) -> None:
    dead = multiprocessing.connection.wait([one.proc.sentinel for one in workers])
    if executor.parallel_config.nnodes > 1 and not any((one.proc.exitcode or 0) < 0 for one in workers):
        time.sleep(_NODES_SPEAK_S)  # it was not killed: it failed, maybe because another node is gone
    if not getattr(executor, "shutting_down", False):
        names = [one.proc.name for one in workers if one.proc.sentinel in dead]
        sys.stderr.write(f"[llmrun] a rank of vLLM died: {', '.join(names)}\n")
        sys.stderr.flush()
        os._exit(DEAF_EXIT)


def abort_client(proc: Any, client: int) -> None:
    """End all requests of one client. From any thread."""
    ids = [one.request_id for one in list(proc.scheduler.requests.values()) if one.client_index == client]
    if ids:
        proc.input_queue.put_nowait((EngineCoreRequestType.ABORT, ids))


def check(proc: Any, request: Any) -> None:
    """Raises ValueError for a request that would harm the engine; may complete its sampling."""
    reason = _reasons.pop(request.request_id, None)
    if reason is not None:
        raise ValueError(reason)
    model = proc.vllm_config.model_config
    _check_prompt(request, model)
    _check_kind(request, model)
    if request.sampling_params is not None:
        _check_sampling(proc, request)
    if request.lora_request is not None:
        _check_lora(proc.vllm_config, request.lora_request)


_reasons: dict[str, str] = {}
"""Why requests could not be decoded, between the decoder and `check` (both in the input thread)."""


def stats(self: Any) -> dict[str, float]:
    """A utility method: numbers for /metrics; the answer is a sign of life too."""
    scheduler = self.scheduler
    numbers = {"num_running": len(scheduler.running), "num_waiting": len(scheduler.waiting)}
    manager = getattr(scheduler, "kv_cache_manager", None)
    cache = self.vllm_config.cache_config
    if manager is not None and cache.num_gpu_blocks:
        total = cache.num_gpu_blocks * cache.block_size
        numbers |= {"kv_used_tokens": round(manager.usage * total), "kv_total_tokens": total}
    return {name: float(value) for name, value in numbers.items()}


def _check_prompt(request: Any, model: Any) -> None:
    ids = request.prompt_token_ids
    if ids is None:
        raise ValueError("the prompt has no token ids")
    if not 0 < len(ids) < model.max_model_len + (request.pooling_params is not None):
        raise ValueError(f"the prompt has {len(ids)} tokens; allowed are 1 to {model.max_model_len - 1}")
    if not request.mm_features and (min(ids) < 0 or max(ids) >= model.get_vocab_size()):
        raise ValueError(f"a token id of the prompt is outside of the vocabulary (0 to {model.get_vocab_size() - 1})")


def _check_kind(request: Any, model: Any) -> None:
    is_pooling = getattr(model, "runner_type", "generate") == "pooling"
    if request.sampling_params is None and request.pooling_params is None:
        raise ValueError("the request has neither sampling nor pooling parameters")
    if is_pooling == (request.pooling_params is None):
        raise ValueError(f"this model {'makes embeddings' if is_pooling else 'generates text'} only")


def _check_sampling(proc: Any, request: Any) -> None:
    """vLLM's own checks (they also choose the backend of structured output), and those that it leaves to its front."""
    config, sampling = proc.vllm_config, request.sampling_params
    model = config.model_config
    room = model.max_model_len - len(request.prompt_token_ids)
    if sampling.seed is not None and sampling.temperature > 0 and not _is_seed_harmless(config):
        raise ValueError("seed: on a CPU it can end vLLM where --worker-extension-cls is not ours; leave one out")
    if sampling.n != 1:
        raise ValueError(f"n must be 1, got {sampling.n}")
    if sampling.max_tokens is None or sampling.max_tokens > room:
        sampling.max_tokens = room
    vocab_size = model.get_vocab_size()
    for name in ("stop_token_ids", "_all_stop_token_ids", "allowed_token_ids", "logit_bias"):
        if any(not 0 <= token < vocab_size for token in getattr(sampling, name, None) or ()):
            raise ValueError(f"{name}: a token id is outside of the vocabulary (0 to {vocab_size - 1})")
    for word in getattr(sampling, "_bad_words_token_ids", None) or ():
        if not word or any(not 0 <= token < vocab_size for token in word):
            raise ValueError(f"bad words: a token id is outside of the vocabulary (0 to {vocab_size - 1})")
    offered = {
        "model_config": model,
        "speculative_config": config.speculative_config,
        "structured_outputs_config": config.structured_outputs_config,
        "tokenizer": getattr(proc.structured_output_manager, "tokenizer", None),
    }
    wanted = _parameters(type(sampling).verify)
    sampling.verify(**{name: value for name, value in offered.items() if name in wanted})


@functools.cache
def _parameters(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _is_seed_harmless(config: Any) -> bool:
    """See rank.py, which mends it in every rank that imports it."""
    return not current_platform.is_cpu() or config.parallel_config.worker_extension_cls == RANK


def _check_lora(config: Any, lora: Any) -> None:
    if config.lora_config is None:
        raise ValueError("LoRA is not enabled")
    if not os.path.isfile(os.path.join(lora.lora_path, "adapter_config.json")):  # noqa: PTH113, PTH118 (str from a wire)
        raise ValueError(f"there is no LoRA adapter at {lora.lora_path}")


def _make_decoder(base: Any) -> Any:
    class Decoder(base):  # type: ignore[misc]
        """Turns a request that cannot be decoded into one that `check` refuses."""

        def __init__(self, t: Any = None, *args: Any, **options: Any) -> None:
            super().__init__(*(() if t is None else (t,)), *args, **options)
            self._is_request = t is EngineCoreRequest

        def decode(self, bufs: Any) -> Any:
            if not self._is_request:
                return super().decode(bufs)
            try:
                return super().decode(bufs)
            except Exception as error:  # whatever SamplingParams.__post_init__ or msgspec raises
                request_id = _read_id(bufs)
                _reasons[request_id] = f"{error}"
                return _poisoned(request_id)

    return Decoder


def _read_id(bufs: Any) -> str:
    first = bufs[0] if isinstance(bufs, list | tuple) else bufs
    raw = bytes(first.buffer if hasattr(first, "buffer") else first)
    body = msgspec.msgpack.decode(raw, ext_hook=lambda code, data: None)
    return str(body[0])


def _poisoned(request_id: str) -> Any:
    required = {name: None for name in EngineCoreRequest.__struct_fields__ if name not in _defaulted()}
    return EngineCoreRequest(**{**required, "request_id": request_id, "arrival_time": 0.0})


def _defaulted() -> set[str]:
    return {field.name for field in msgspec.structs.fields(EngineCoreRequest) if not field.required}


def _refuse(self: Any, request: Any) -> None:
    """In place of a finish without words: the reason travels in `stop_reason`."""
    error = sys.exc_info()[1]
    sys.stderr.write(f"[llmrun] request {request.request_id} is refused: {error}\n")
    output = EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=FinishReason.ERROR,
        stop_reason=str(error) or "it is not valid",
    )
    outputs = EngineCoreOutputs(finished_requests={request.request_id}, outputs=[output])
    self.output_queue.put_nowait((request.client_index, outputs))


def _die(args: Any) -> None:
    sys.__excepthook__(args.exc_type, args.exc_value, args.exc_traceback)
    sys.stderr.flush()
    os._exit(DEAF_EXIT)
