"""What in=dyn:// and out=dyn:// ask of the rest of a command line, checked before a model is looked for.

Owns which flags belong to a worker, which to an ingress, and the messages where they meet the wrong side.
"""

from __future__ import annotations

from collections.abc import Sequence

from runner.config_file import Settings
from runner.errors import UsageError
from runner.net.addresses import parse_address
from runner.net.settings import read_settings
from runner.options import RunOptions
from runner.selection import EngineChoice, FrontendChoice

_BOTH = ("store", "store_path", "dyn_host", "migration_limit", "no_kv_events")
_WORKER = ("request_plane",)
_INGRESS = ("router_mode", "router_temperature", "kv_overlap_score_weight")
_ENGINES_OWN = (
    "context_length", "max_running", "max_queue", "threads", "gpu_layers", "kv_cache_block_size",
    "tensor_parallel_size", "base_gpu_id", "num_nodes", "node_rank", "leader_addr", "extra_engine_args", "lora",
    "no_restart",
)  # fmt: skip
"""Flags of the engine: at an ingress nobody would hear them."""


_MODELS_OWN = ("chat_template", "model_config")
"""An ingress takes these from the workers' cards, unless it has a MODEL of its own."""


def check_network(
    frontend: FrontendChoice,
    engines: Sequence[EngineChoice],
    options: RunOptions,
    settings: Settings,
    *,
    has_model: bool = True,
) -> None:
    """Raises UsageError: a bad address, a flag on the wrong side or for what the engine cannot do.

    `engines` are those of out=A,B; `has_model`: a MODEL stands on the command line.
    """
    is_worker = frontend.name == "dyn"
    ingress = next((engine for engine in engines if engine.entry.level == "models"), None)
    is_ingress = ingress is not None
    _refuse(settings, (*_WORKER, *(() if is_ingress or is_worker else _BOTH)), unless=is_worker, belongs="in=dyn://…")
    _refuse(settings, _INGRESS, unless=is_ingress, belongs="out=dyn://…")
    if is_worker:
        parse_address(frontend.argument)
        read_settings(options)
        if text := next((engine.entry.name for engine in engines if engine.entry.level == "text"), None):
            belongs = f"engines of token ids: an answer of out={text} cannot go on at another worker"
            _refuse(settings, ("migration_limit",), unless=False, belongs=belongs)
    if ingress is not None:
        if len(engines) > 1:
            raise UsageError("out=dyn waits for its workers and never fails to start: it cannot stand in out=A,B")
        if ingress.argument:
            parse_address(ingress.argument)
        read_settings(options)
        _refuse(settings, _ENGINES_OWN, unless=False, belongs="the worker: llmrun in=dyn://… out=ENGINE")
        if not has_model:
            _refuse(settings, _MODELS_OWN, unless=False, belongs="the worker; or name the MODEL here too")
        if not ingress.argument and not has_model:
            _refuse(
                settings,
                ("model_name",),
                unless=False,
                belongs="the worker or of out=dyn://ADDRESS; out=dyn serves each model under its own name",
            )
        if options.http_workers > 1:
            raise UsageError("--http-workers shares an engine of this machine; out=dyn has none: start more ingresses")


def _refuse(settings: Settings, keys: tuple[str, ...], *, unless: bool, belongs: str) -> None:
    """What stands in the environment or in the config file may be meant for other runs; a flag is meant for this."""
    for key in keys:
        if not unless and settings.sources.get(key, "").startswith("--"):
            raise UsageError(f"{settings.sources[key].split()[0]} is a flag of {belongs}; leave it out here")
