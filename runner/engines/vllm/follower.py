"""Child side on a node that is not 0: the ranks of this machine, as `vllm serve --headless --node-rank K` runs them.

They take their work from node 0's EngineCore; nothing is asked of this node. Its end, or the end of one of its ranks,
ends all nodes (runner.engines.nodes, runner.engines.endings).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from runner.engines import endings, nodes
from runner.engines.base import EngineSpec
from runner.engines.vllm.config import installed_version, make_config
from runner.engines.vllm.settings import read_settings
from runner.errors import RequestError
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenDelta, TokenRequest

_NO_REQUESTS = "this node only follows; send requests to node 0"


def make(spec: EngineSpec) -> VllmFollower:
    """For ProcessEngine; cheap."""
    return VllmFollower(spec)


class VllmFollower:
    """See runner.engines.base.Engine; it has no requests."""

    def __init__(self, spec: EngineSpec) -> None:
        self.progress: Callable[[str, float | None], None] = lambda phase, share: None
        self._name = spec.name
        self._settings = read_settings(spec)
        self._nodes: nodes.Nodes | None = None
        self._children: endings.Children | None = None
        self._executor: Any = None

    async def start(self) -> EngineInfo:
        """See Engine. Blocks this loop until the ranks of all nodes have met and loaded the model."""
        place, version = self._settings.place, installed_version()
        assert place is not None
        self._nodes = nodes.enter(place, {"vllm version": version}, "VLLM_HOST_IP", self.progress)
        self.progress("importing vllm", None)
        config = make_config(list(self._settings.arguments))
        from vllm.v1.executor.multiproc_executor import MultiprocExecutor

        self.progress("loading the model", None)
        self._executor = MultiprocExecutor(config, monitor_workers=False)
        self._children = endings.Children(has_nodes=True)
        return EngineInfo(name=self._name, version=version, max_running=1)

    async def generate(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """See Engine."""
        raise RequestError(_NO_REQUESTS)
        yield  # makes it a generator

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """See Engine."""
        raise RequestError(_NO_REQUESTS)

    async def health(self) -> None:
        """A death ends this process (endings.py)."""

    async def stats(self) -> dict[str, float]:
        """See Engine."""
        return {}

    async def close(self) -> None:
        """See Engine."""
        if self._nodes is not None:
            self._nodes.close()
        if self._children is not None:
            self._children.kill()
