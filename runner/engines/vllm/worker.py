"""Child side, run by the Python of vLLM's environment: EngineCore in this process's main thread, behind our guard.

Owns the report, joining the other machines, and this process's end. What a request may be is request_guard.py's.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from model_cards.errors import CardError
from runner.engines import guard, nodes
from runner.engines.nodes import Place
from runner.engines.vllm import gguf_loader
from runner.engines.vllm.config import installed_version, make_config
from runner.engines.vllm.report import Phase, Refusal, Report, Word
from runner.engines.vllm.sharing import Sharing
from runner.errors import EngineStartFailed

_LEAVE_S = 5.0
_STRUCTS = ("EngineCoreRequest", "EngineCoreOutputs", "EngineCoreOutput")


def main() -> None:
    """Never returns."""
    own, flags = _read_own()
    os.set_inheritable(own.llmrun_fd, False)
    guard.watch(own.llmrun_parent, Path(own.llmrun_folder) / "worker")
    launcher = socket.socket(fileno=own.llmrun_fd)
    sharing = Sharing(own.llmrun_folder, own.llmrun_clients)
    threading.Thread(target=_leave_with, args=(launcher, sharing), daemon=True).start()
    place = msgspec.json.decode(own.llmrun_place, type=Place) if own.llmrun_place else None
    if place is not None:
        join_nodes(place, launcher)
    config = make_config(_prepare(flags, Path(own.llmrun_folder), launcher))

    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.executor import Executor

    from runner.engines.vllm import request_guard

    _tell(launcher, _make_report(config))
    request_guard.install(sharing)
    if place is not None:
        request_guard.let_nodes_speak_first()
    EngineCoreProc.run_engine_core(
        vllm_config=config,
        local_client=True,
        handshake_address=own.llmrun_handshake,
        executor_class=Executor.get_class(config),
        log_stats=False,
        dp_rank=0,
        local_dp_rank=0,
    )


def _read_own() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="runner.engines.vllm.worker", allow_abbrev=False)
    parser.add_argument("--llmrun-fd", type=int, required=True, help="the launcher's socket")
    parser.add_argument("--llmrun-parent", type=int, required=True, help="process id of the launcher")
    parser.add_argument("--llmrun-handshake", required=True, help="EngineCore's handshake address")
    parser.add_argument("--llmrun-folder", required=True, help="the launcher's private folder for this engine")
    parser.add_argument("--llmrun-clients", type=int, default=1, help="how many processes will speak to EngineCore")
    parser.add_argument("--llmrun-place", default="", help="JSON of this machine's Place among several")
    return parser.parse_known_args()


def join_nodes(place: Place, launcher: socket.socket) -> None:
    """Node 0 waits for the others before anything is loaded."""
    try:
        versions = {"vllm version": installed_version()}
        nodes.enter(place, versions, "VLLM_HOST_IP", lambda phase, share: _tell(launcher, Phase(phase)))
    except EngineStartFailed as error:
        _refuse(error, launcher)


def _prepare(flags: list[str], folder: Path, launcher: socket.socket) -> list[str]:
    """What a GGUF file needs before vLLM hears of it."""
    try:
        return gguf_loader.prepare(flags, folder)
    except EngineStartFailed as error:
        _refuse(error, launcher)
    except CardError as error:
        _refuse(EngineStartFailed(str(error)), launcher)


def _refuse(error: EngineStartFailed, launcher: socket.socket) -> NoReturn:
    _tell(launcher, Refusal(reason=str(error), hint=error.hint))
    sys.exit(1)


def _tell(launcher: socket.socket, word: Word) -> None:
    launcher.sendall(msgspec.json.encode(word) + b"\n")


def _leave_with(launcher: socket.socket, sharing: Sharing) -> None:
    """A line is the invitation of further clients. When the launcher has shut its end: leave at once when we are alone,
    else let vLLM end its workers first."""
    lines = launcher.makefile("rb")
    for line in lines:
        sharing.begin(line)
    if _has_children():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LEAVE_S)
    os._exit(0)


def _has_children() -> bool:
    """Other processes than the guard (runner.engines.guard)."""
    import psutil

    return len(psutil.Process().children()) > 1


def _make_report(config: Any) -> Report:
    import vllm
    import vllm.v1.engine as engine
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform
    from vllm.pooling_params import PoolingParams
    from vllm.sampling_params import SamplingParams

    model = config.model_config
    structs = [getattr(engine, name) for name in _STRUCTS] + [LoRARequest, PoolingParams]
    return Report(
        version=vllm.__version__,
        structs={struct.__name__: list(struct.__struct_fields__) for struct in structs},
        vocab_size=model.get_vocab_size(),
        max_logprobs=model.max_logprobs,
        is_pooling=getattr(model, "runner_type", "generate") == "pooling",
        platform=str(current_platform.device_type or "unknown"),
        sampling_fields=list(SamplingParams.__struct_fields__),
        details={"max_model_len": model.max_model_len},
    )


if __name__ == "__main__":
    main()
