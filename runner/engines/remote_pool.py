"""The workers of one remote model: who is there, who is well, and whose turn it is.

A worker is down at the first broken stream or refused request, until discovery changes it or a probe finds it well.
One that is silent is probed; one that does not answer (cut off, frozen) or that discovery has lost and that says
nothing any more is given up, and its streams break. Knows nothing of tokens or engines.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import logging
from collections.abc import Sequence

from runner.net.client import NetClient
from runner.net.planes import Unreachable
from runner.net.records import Instance
from runner.net.responses import ResponseStream
from runner.net.routing import Router

logger = logging.getLogger(__name__)

_TICK_S = 0.5
_PROBE_AFTER_S = 2.0
"""Of silence on a stream."""
_PROBE_EVERY_S = 1.0
_SILENT_WITHOUT_LEASE_S = 10.0
_BLIND_S = 3.0
"""A worker that cannot be probed is tried again after this."""


class Worker:
    """One instance, as this ingress sees it. `id` is the instance's."""

    def __init__(self, instance: Instance, *, is_own: bool, max_running: int) -> None:
        self.id = instance.id
        self.instance = instance
        self.is_own = is_own
        """llmrun, not another program that speaks Dynamo's wire."""
        self.max_running = max_running
        self.is_listed = True
        self.down: str | None = None
        """Why it gets no requests."""
        self.num_running = 0
        self.unread_blocks = 0
        """Of the KV cache, that it has to make before the first tokens of the answers that have none."""
        self.num_requests = 0
        self.num_failures = 0
        self.num_tokens = 0
        self.streams: set[ResponseStream] = set()
        self.probed_at = 0.0
        self.probing: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"worker {self.instance.name} at {self.instance.target}"

    @property
    def can_be_probed(self) -> bool:
        """Over NATS others than llmrun would take a probe for a request."""
        return self.is_own or self.instance.plane == "tcp"

    def silent_s(self, now: float) -> float:
        """Of the stream that has waited longest."""
        return max((now - stream.heard_at for stream in self.streams), default=0.0)


class WorkerPool:
    """All workers of one model. `start` begins to watch them, `close` ends it."""

    def __init__(self, client: NetClient, router: Router) -> None:
        self.router = router
        self._client = client
        self._workers: dict[int, Worker] = {}
        self._leaving: set[Worker] = set()
        """Not listed any more, with streams that go on."""
        self._order: list[Worker] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch. Needs a running loop."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch())

    @property
    def workers(self) -> Sequence[Worker]:
        """Those that discovery sees, in a stable order."""
        return self._order

    @property
    def num_streams(self) -> int:
        """Answers that run, also at workers that discovery has lost."""
        return sum(len(worker.streams) for worker in [*self._order, *self._leaving])

    def add(self, worker: Worker) -> None:
        """A worker that discovery sees, or sees changed: it counts as well."""
        old = self._workers.get(worker.id)
        if old is not None:
            old.instance, old.down = worker.instance, None
        else:
            self._workers[worker.id] = worker
            bisect.insort(self._order, worker, key=lambda one: one.id)
        self._notify()

    def remove(self, worker_id: int) -> None:
        """Discovery does not see it any more: no new requests; streams go on while it speaks."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            worker.is_listed = False
            self._leaving.add(worker)
            self.router.forget(worker_id)
            self._order.remove(worker)
            self._notify()

    def pick(self, token_ids: Sequence[int], tried: set[int]) -> Worker | None:
        """The worker for a prompt, not one of those tried; None when there is none."""
        usable = [worker for worker in self._order if worker.down is None and worker.id not in tried]
        return usable[self.router.pick(usable, token_ids)] if usable else None

    async def wait(self, timeout_s: float) -> bool:
        """Wait until something changes for the better; False when nothing did."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    def enter(self, worker: Worker, unread: int) -> None:
        """A request goes there, with so many blocks of prompt to read."""
        worker.num_running += 1
        worker.num_requests += 1
        worker.unread_blocks += unread

    def leave(self, worker: Worker, unread: int) -> None:
        """It has ended there; `unread` of its prompt, if it ended so early."""
        worker.num_running -= 1
        worker.unread_blocks -= unread

    def mark_down(self, worker: Worker, why: str) -> None:
        """No requests until discovery or a probe says otherwise."""
        worker.num_failures += 1
        if worker.down is None:
            logger.info("%s is down: %s", worker, why)
        worker.down = why
        worker.probed_at = asyncio.get_running_loop().time()

    def _notify(self) -> None:
        self._changed.set()

    # watching

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now = asyncio.get_running_loop().time()
            for worker in [*self._order, *self._leaving]:
                self._look_at(worker, now)

    def _look_at(self, worker: Worker, now: float) -> None:
        silent_s = worker.silent_s(now)
        if not worker.is_listed:
            if not worker.streams:
                self._leaving.discard(worker)
            elif silent_s > _SILENT_WITHOUT_LEASE_S:
                _break(worker, f"it is gone from discovery and silent for {silent_s:.0f} s")
        if worker.down is None and silent_s < _PROBE_AFTER_S:
            return
        if not worker.can_be_probed:
            if worker.down is not None and now - worker.probed_at > _BLIND_S:
                self._up(worker)
        elif worker.probing is None and now - worker.probed_at >= _PROBE_EVERY_S:
            worker.probed_at = now
            worker.probing = asyncio.create_task(self._probe(worker))

    async def _probe(self, worker: Worker) -> None:
        try:
            trouble = await self._client.probe(worker.instance)
            if trouble:
                worker.down = trouble
            elif worker.down is not None:
                self._up(worker)
        except Unreachable as error:
            self.mark_down(worker, str(error))
            _break(worker, f"it does not answer: {error}")
        finally:
            worker.probing = None

    def _up(self, worker: Worker) -> None:
        logger.info("%s is well again", worker)
        worker.down = None
        self._notify()

    async def close(self) -> None:
        """Safe twice."""
        tasks = [task for task in (self._task, *(worker.probing for worker in self._order)) if task is not None]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        for worker in [*self._order, *self._leaving]:
            _break(worker, "the ingress is closing")


def _break(worker: Worker, why: str) -> None:
    for stream in list(worker.streams):
        stream.fail(why)
