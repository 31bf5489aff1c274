"""in=dyn://namespace.component.endpoint: serves this machine's engine to ingresses (out=dyn) on others.

Owns a worker's life: listen, register under a lease, watch the engine, and leave without breaking an answer. What
happens to a request is endpoint_streams.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine, Iterator
from typing import Any

import msgspec

from runner.catalog import Catalog
from runner.console import say, warn
from runner.engines.process import ProcessEngine
from runner.errors import EngineBusy, EngineDied, EngineStartFailed, LlmrunError
from runner.frontends.base import FrontendSpec
from runner.frontends.endpoint_answers import TextAnswers, TokenAnswers
from runner.frontends.endpoint_blocks import blocks_told
from runner.frontends.endpoint_streams import EndpointStreams
from runner.net.addresses import parse_address
from runner.net.card_files import CardServer
from runner.net.credentials import bare_url
from runner.net.loads import load_key, load_of
from runner.net.planes import NatsEndpoint, TcpEndpoint
from runner.net.records import Instance, card_key, encode_card, encode_instance, instance_keys
from runner.net.settings import make_store, read_settings
from runner.net.store import Lease, StoreRefused, StoreUnavailable
from runner.pipeline import ChatPipeline
from runner.services import ChatService

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WATCH_S = 0.5
_TELL_S = 2.0
_GIVE_UP_S = 10.0
"""An engine that has not come back after this leaves the worker nothing to serve."""
_GOODBYE_S = 0.5
"""Ingresses may still send while they hear that the worker leaves."""


class EndpointFrontend:
    """One worker. Made from wrong options or a wrong address it raises UsageError."""

    def __init__(self, spec: FrontendSpec) -> None:
        self._address = parse_address(spec.argument)
        self._settings = read_settings(spec.options)
        self._drain_timeout_s: float = spec.options.drain_timeout_s
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, catalog: Catalog) -> int:
        """Serve until SIGINT or SIGTERM, then drain; 1 when the engine is lost. Raises EngineStartFailed."""
        service = catalog.default()
        engine = service.engine if isinstance(service, ChatPipeline) else None
        if isinstance(engine, ProcessEngine):
            engine.restart_eagerly = True  # while it is refused, no request would make it start again
        streams = EndpointStreams(
            TextAnswers(service) if engine is None else TokenAnswers(engine, service.info, service.card.vocab_size)
        )
        store = make_store(self._settings)
        limit = self._settings.migration_limit or 0
        files = CardServer(service.card, service.info, migration_limit=limit, takes_text=engine is None)
        with self._signals():
            try:
                lease = await store.lease()
                endpoint = self._endpoint(streams)
                try:
                    async with blocks_told(engine, self._settings, self._address, lease):
                        await self._register(lease, endpoint, files)
                        code = await self._serve(lease, service, streams)
                finally:
                    await streams.end()
                    await endpoint.close()
            except StoreUnavailable as error:
                hint = "" if isinstance(error, StoreRefused) else _HINT
                raise EngineStartFailed(f"the worker cannot register: {error}", hint=hint) from error
            except OSError as error:
                what = f"the worker cannot listen on {self._settings.host}: {error.strerror or error}"
                raise EngineStartFailed(what, hint="--dyn-host takes an address of this machine") from error
            finally:
                await files.close()
                await store.close()
        return code

    async def _serve(self, lease: Lease, service: ChatService, streams: EndpointStreams) -> int:
        """From the first request to the last; returns the exit code."""
        telling = asyncio.create_task(self._tell_load(lease, service, streams))
        try:
            code = await self._watch(service, streams)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        await self._leave(lease, streams)
        return code

    def _endpoint(self, streams: EndpointStreams) -> TcpEndpoint | NatsEndpoint:
        if self._settings.plane == "tcp":
            return TcpEndpoint(self._settings.host, streams.take)
        return NatsEndpoint(self._settings.nats, streams.take)

    async def _register(self, lease: Lease, endpoint: TcpEndpoint | NatsEndpoint, files: CardServer) -> None:
        """Listen first, then say so: whoever sees the keys can send."""
        address, plane = self._address, self._settings.plane
        is_tcp = plane == "tcp"
        target = await endpoint.start(f"{lease.id:x}/{address.path}" if is_tcp else address.subject(lease.id))
        card = await files.start(self._settings.host)
        instance = Instance(address=address, id=lease.id, plane=plane, target=target, codec="msgpack")
        await lease.put(card_key(address, lease.id), encode_card(address, lease.id, card))
        for key, value in zip(instance_keys(address, lease.id), encode_instance(instance), strict=True):
            await lease.put(key, value)
        self._greet(card["display_name"], instance)

    def _greet(self, model: str, instance: Instance) -> None:
        settings = self._settings
        if settings.is_cut_off:
            warn(f"others are told {settings.host}, where they cannot reach this worker; give --dyn-host ADDRESS")
        etcd = ", ".join(map(bare_url, settings.etcd))
        where = f"etcd {etcd}" if settings.store == "etcd" else f"folder {settings.folder}"
        say(f"Serving {model} as {self._address} (instance {instance.name}, {instance.target}) through {where}")

    async def _watch(self, service: ChatService, streams: EndpointStreams) -> int:
        """Returns 0 when asked to stop, 1 when the engine is gone for good."""
        silent_s = 0.0
        while not self._stop.is_set():
            try:
                await service.health()
                streams.refusal, silent_s = None, 0.0
            except EngineBusy as error:
                streams.refusal, silent_s = str(error), 0.0
            except EngineDied as error:
                streams.refusal, silent_s = str(error), silent_s + _WATCH_S
                if silent_s > _GIVE_UP_S:
                    warn(f"the worker leaves: {error}")
                    return 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _WATCH_S)
        return 0

    async def _tell_load(self, lease: Lease, service: ChatService, streams: EndpointStreams) -> None:
        """For `llmrun workers`; never the reason for anything."""
        told = b""
        while True:
            with contextlib.suppress(StoreUnavailable, LlmrunError):
                load = load_of(await service.stats(), streams.num_open, service.card.kv_cache_block_size)
                if (now := msgspec.json.encode(load)) != told:
                    await lease.put(load_key(self._address, lease.id), now)
                    told = now
            await asyncio.sleep(_TELL_S)

    async def _leave(self, lease: Lease, streams: EndpointStreams) -> None:
        """The lease first; then what was sent meanwhile is still taken; then the answers end."""
        say(f"leaving: {streams.num_open} answers run; again: leave at once")
        await lease.revoke()
        await self._unless_hurried(asyncio.sleep(_GOODBYE_S))
        streams.refusal = "the worker is shutting down"
        await self._unless_hurried(streams.drain(self._drain_timeout_s))

    async def _unless_hurried(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        hurry = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait({task, hurry}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (task, hurry):
                one.cancel()
            await asyncio.gather(task, hurry, return_exceptions=True)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._asked)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _asked(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()


_HINT = "llmrun up starts etcd and NATS here; ETCD_ENDPOINTS and NATS_SERVER name others; --store file needs neither"
