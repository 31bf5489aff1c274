"""HeadlessSpawner: EngineCore started by `vllm serve --headless`, a supported command, with nothing of ours in it.

Without our guard the launcher checks requests itself (limits.py); without our report the installed source tells the
wire (installed.py). A small process of ours (guard.py) becomes vLLM's command, so that no orphan stays.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from runner.engines import guard
from runner.engines.vllm.connector import CoreSpawner, Start
from runner.engines.vllm.installed import find_package, is_cpu_build, read_structs, takes_back_draws
from runner.engines.vllm.limits import Limits
from runner.engines.vllm.report import Report
from runner.engines.vllm.sockets import CoreSockets
from runner.errors import EngineStartFailed

SERVE = ("-m", "vllm.entrypoints.cli.main", "serve")
_MAX_LOGPROBS = "--max-logprobs"


def headless_command(arguments: tuple[str, ...], port: str) -> list[str]:
    """What follows the interpreter; `arguments` begin with `--model PATH`."""
    _, model, *flags = arguments
    place = ["--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", port]
    sizes = ["--data-parallel-size", "1", "--data-parallel-size-local", "1"]
    return [*SERVE, model, "--headless", *place, *sizes, *flags]


def guarded(python: str, command: list[str]) -> list[str]:
    """`command`, run by `python`, tied to this process."""
    return [python, str(Path(guard.__file__).resolve()), str(os.getpid()), python, *command]


class HeadlessSpawner(CoreSpawner):
    """See Connector."""

    is_remote_handshake = True
    _may_seed = True

    def command(self, sockets: CoreSockets, folder: Path, fd: int) -> list[str]:
        """See CoreSpawner. The socket is inherited, and its end is the end of vLLM's parent process."""
        port = sockets.handshake_address.rpartition(":")[2]
        return guarded(self._python, headless_command(self._settings.arguments, port))

    async def report(self, start: Start) -> Report:
        """See CoreSpawner."""
        package = await asyncio.to_thread(find_package, self._python)
        self._may_seed = not (is_cpu_build(package) and takes_back_draws(package))
        return Report(
            version="of unknown version",  # its registration tells
            structs=read_structs(package),
            vocab_size=self._vocab_size(),
            max_logprobs=self._max_logprobs(),
            is_pooling="pooling" in self._settings.arguments,
            platform="unknown",
            sampling_fields=[],
            details={"mode": "headless"},
        )

    def limits(self, report: Report, context_length: int) -> Limits | None:
        """See CoreSpawner."""
        return Limits(
            vocab_size=report.vocab_size,
            context_length=context_length,
            max_logprobs=report.max_logprobs,
            may_seed=self._may_seed,
        )

    def _vocab_size(self) -> int:
        path = Path(self._settings.arguments[1]) / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            return int(config.get("vocab_size") or config["text_config"]["vocab_size"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineStartFailed(f"{path} has no readable vocab_size: {error}") from None

    def _max_logprobs(self) -> int:
        words = self._settings.arguments
        return int(words[words.index(_MAX_LOGPROBS) + 1]) if _MAX_LOGPROBS in words else 20
