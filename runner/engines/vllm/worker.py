"""Child side, run by the Python of vLLM's environment: EngineCore in this process's main thread, behind our guard.

Owns reading vLLM's flags, the report, and this process's end. What a request may be is request_guard.py's.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from runner.engines import guard
from runner.engines.vllm.report import Report
from runner.engines.vllm.sharing import Sharing

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
    config = _make_config(flags)

    from vllm.v1.engine.core import EngineCoreProc
    from vllm.v1.executor import Executor

    from runner.engines.vllm import request_guard

    launcher.sendall(msgspec.json.encode(_make_report(config)) + b"\n")
    request_guard.install(sharing)
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
    return parser.parse_known_args()


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


def _make_config(flags: list[str]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:  # up to 0.11
        from vllm.utils import FlexibleArgumentParser

    if current_platform.is_cpu():
        _allow_amx()
        if not {"--enforce-eager", "--no-enforce-eager"} & set(flags):
            flags = [*flags, "--enforce-eager"]  # a first compiled start takes minutes on a CPU
    args = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(flags)
    return AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def _allow_amx() -> None:
    """Ask the kernel for AMX tiles: without it vLLM's eager attention dies with SIGILL on a CPU that has them."""
    import torch

    is_supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if is_supported is not None and is_supported():
        torch.cpu._init_amx()


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
