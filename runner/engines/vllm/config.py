"""Child side: vLLM's flags to its configuration, with what only a look at the machine tells.

Used by the worker and by followers (follower.py), which must come to the same configuration.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from runner.engines.vllm.settings import DISTRIBUTIONS

RANK = "runner.engines.vllm.rank.Rank"
"""What vLLM mixes into its Worker on a CPU (rank.py). Not imported here: it patches."""
_EXTENSION = "--worker-extension-cls"


def make_config(flags: list[str]) -> Any:
    """A VllmConfig. Exits as argparse does on flags that this vLLM does not know."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    if current_platform.is_cpu():
        flags = [*flags, *_cpu_flags(flags)]
    args = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(flags)
    return AsyncEngineArgs.from_cli_args(args).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def _cpu_flags(flags: list[str]) -> list[str]:
    more = []
    if not {"--enforce-eager", "--no-enforce-eager"} & set(flags):
        more.append("--enforce-eager")  # a first compiled start takes minutes on a CPU
    if _EXTENSION not in flags:
        more += [_EXTENSION, RANK]
    return more


def installed_version() -> str:
    """Without importing vllm."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"
