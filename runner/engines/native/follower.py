"""FollowerEngine: the engine process of a node that is not 0. It has no requests; its steps are node 0's plans.

The frontend of such a node is in=none. It ends with a reason when node 0 is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from runner.engines.base import EngineSpec, StepOutput
from runner.engines.native.member import Member
from runner.engines.native.ranks import LocalRank, RankLayout, rank_token, spawn_local
from runner.engines.nodes import split_address
from runner.errors import EngineFailed, EngineStartFailed, RequestError, UnsupportedField
from runner.types import EmbedRequest, EmbedResult, EngineInfo, TokenRequest

_POLL_S = 0.25


class FollowerEngine:
    """See StepEngine."""

    def __init__(self) -> None:
        self.progress: Callable[[str, float | None], None] = lambda phase, share: None
        self._member: Member | None = None
        self._local: list[LocalRank] = []

    def start(self, spec: EngineSpec) -> EngineInfo:
        """Join node 0 and load; ready when all nodes are. Raises EngineStartFailed."""
        layout, address = RankLayout(spec.options), split_address(spec.options.leader_addr or "")
        self._is_open = True
        self.progress(f"joining node 0 at {address[0]}:{address[1]}", None)
        self._local = spawn_local(spec, layout, address, rank_token(spec))
        self._member = Member(spec, layout.first, address, rank_token(spec))
        self._member.join(spec.options.start_timeout_s)
        while not self._member.is_ready:
            if not self._member.handle(_POLL_S):
                raise EngineStartFailed("node 0 ended before all nodes were ready")
        return EngineInfo(
            name=spec.name,
            version=f"torch {torch.__version__}",
            context_length=self._member.context_length,
            max_running=1,
        )

    def add(self, request: TokenRequest) -> None:
        """Always refused: requests go to node 0."""
        raise RequestError("this node only follows; send requests to node 0")

    def cancel(self, request_id: str) -> None:
        """Nothing to forget."""

    def has_work(self) -> bool:
        """Plans may come at any time."""
        return self._is_open

    def step(self) -> list[StepOutput]:
        """The next plan of node 0, or a short wait. Raises EngineFailed when node 0 has ended."""
        assert self._member is not None
        if not self._member.handle(_POLL_S):
            self._is_open = False
            raise EngineFailed("node 0 has ended, and with it this node's part")
        return []

    def embed(self, request: EmbedRequest) -> EmbedResult:
        """Never here."""
        raise UnsupportedField("this node only follows", field="model")

    def interrupt(self) -> None:
        """Steps are short."""

    def stats(self) -> dict[str, float]:
        """No requests."""
        return {"num_running": 0.0, "num_waiting": 0.0}

    def close(self) -> None:
        """Safe twice."""
        if self._member is not None:
            self._member.close()
        for local in self._local:
            local.stop()
        sys.stderr.flush()
