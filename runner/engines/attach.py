"""Joining an engine that another process of this launcher owns (--http-workers): by its name and its `socket_path`.

Knows which engines are joined in another way than by our own child's socket.
"""

from __future__ import annotations

from runner.engines.base import EngineSpec
from runner.engines.connectors import Connector, Joiner
from runner.engines.process import ProcessEngine
from runner.engines.replicas import Replicas, split_path

_TIMEOUT_S = 60.0


def attach(socket_path: str, spec: EngineSpec) -> ProcessEngine | Replicas:
    """Connects when it is started, and again whenever its owner has restarted it."""
    engines = [ProcessEngine.attach(path, spec, connector=_joiner(path, spec.name)) for path in split_path(socket_path)]
    for engine in engines:
        engine.restart_eagerly = True
    return engines[0] if len(engines) == 1 else Replicas(engines)


def _joiner(path: str, name: str) -> Connector:
    if name == "vllm":
        from runner.engines.vllm.joiner import CoreJoiner

        return CoreJoiner(path, name, _TIMEOUT_S)
    return Joiner(path, name, _TIMEOUT_S)
