"""out=dyn: the models of all workers that discovery sees, in the catalog, as they come and go.

Owns who belongs to which model: a worker joins when its instance and its card are there and fit to those that serve
the model already. A request's way to a worker is engines/remote.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from model_cards.card import ModelCard
from model_cards.errors import CardError
from runner import paths
from runner.catalog import Catalog
from runner.console import say, warn
from runner.engines.base import EngineSpec
from runner.engines.remote import RemoteEngine
from runner.engines.remote_pool import Worker, WorkerPool
from runner.engines.remote_text import RemoteText
from runner.errors import EngineStartFailed, LlmrunError
from runner.net.addresses import Address, parse_address
from runner.net.block_listener import BlockListener
from runner.net.client import NetClient
from runner.net.records import CARDS, INSTANCES, Instance, RecordError, decode_card, decode_instance
from runner.net.routing import Router
from runner.net.settings import NetSettings, make_store, read_settings
from runner.net.store import Change, StoreRefused, StoreUnavailable
from runner.pipeline import ChatPipeline
from runner.plan import Plan
from runner.remote_cards import RemoteCard, read_card
from runner.services import ChatService

logger = logging.getLogger(__name__)

_OLD_INSTANCES = "instances/"
"""Where Dynamo 0.3 and 0.4 register."""
_RETRY_S = 5.0
_GRACE_S = 10.0
"""A model without workers stays on offer (and answers 503) this long."""
_Member = tuple[str, int]
"""An address' path and an instance's id."""


class _Model:
    """One model on offer, and the card of its first worker."""

    def __init__(self, name: str, first: RemoteCard, service: ChatService, pool: WorkerPool) -> None:
        self.name, self.first, self.service, self.pool = name, first, service, pool
        self.removal: asyncio.TimerHandle | None = None


def make_models(plan: Plan) -> RemoteModels:
    """out=dyn and out=dyn://ADDRESS; a MODEL on the command line stands for the workers' cards. Raises UsageError."""
    card = plan.card if plan.card.tokenizer is not None else None
    address = parse_address(plan.engine.argument) if plan.engine.argument else None
    return RemoteModels(
        read_settings(plan.options), address, card, lenient=plan.options.lenient, alias=plan.options.model_name
    )


class RemoteModels:
    """Fills a catalog. `address` None: whatever there is."""

    def __init__(
        self,
        settings: NetSettings,
        address: Address | None = None,
        given: ModelCard | None = None,
        *,
        lenient: bool = False,
        alias: str | None = None,
    ) -> None:
        self._settings, self._address, self._given = settings, address, given
        self._lenient, self._alias = lenient, alias
        self._store = make_store(settings)
        self._client = NetClient(settings.host, settings.nats)
        has_events = settings.kv_events and settings.router_mode == "kv"
        self._blocks = BlockListener(settings.nats) if has_events else None
        self._catalog = Catalog()
        self._instances: dict[str, Instance] = {}
        self._cards: dict[_Member, dict[str, Any]] = {}
        self._models: dict[str, _Model] = {}
        self._members: dict[_Member, str] = {}
        self._joining: dict[_Member, asyncio.Task[None]] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._admitting = asyncio.Lock()
        self._first = asyncio.Event()
        self._said: set[str] = set()
        self._is_away = False
        """The discovery, since the start."""
        self._says: Callable[[str], None] = logger.info

    @property
    def wanted(self) -> str:
        """What is looked for, and where."""
        return f"looking for {self._address or 'workers of any model'} in {self._store.where}"

    async def start(self, catalog: Catalog, *, is_server: bool = False) -> None:
        """Begin to watch; at a server, say on stderr who comes and goes.

        Raises EngineStartFailed when no port can be had for the answers, or the discovery does not let us in.
        """
        self._catalog = catalog
        self._says = say if is_server else logger.info
        catalog.awaited = f"no worker serves a model yet; {self.wanted}"
        try:
            await self._client.start()
        except OSError as error:
            raise EngineStartFailed(
                f"workers cannot call this ingress home at {self._settings.host}: {error.strerror}",
                hint="--dyn-host is an address of this machine",
            ) from error
        if self._blocks is not None:
            self._blocks.start()
        if self._settings.is_cut_off:
            warn(f"workers are told {self._settings.host}, where they cannot reach this ingress; give --dyn-host")
        await self._check()
        prefixes = (CARDS, INSTANCES, _OLD_INSTANCES)
        if self._address is not None:
            path = self._address.path
            prefixes = (f"{CARDS}{path}/", f"{INSTANCES}{path}/", f"{_OLD_INSTANCES}{path}:")
        self._watching = [asyncio.create_task(self._watch(prefix)) for prefix in prefixes]

    async def _check(self) -> None:
        """A discovery that is away may come back; what it refuses now it refuses later too."""
        try:
            await self._store.check(CARDS)
        except StoreRefused as error:
            raise EngineStartFailed(str(error)) from None
        except StoreUnavailable as error:
            self._is_away = True
            self._trouble(f"{error}; it is tried again")

    async def first(self, timeout_s: float) -> None:
        """Returns when a model is served. Raises EngineStartFailed."""
        try:
            await asyncio.wait_for(self._first.wait(), timeout_s)
        except TimeoutError:
            raise EngineStartFailed(self._catalog.awaited, hint="llmrun workers lists what discovery sees") from None

    async def _watch(self, prefix: str) -> None:
        async with contextlib.aclosing(self._store.watch(prefix)) as changes:
            async for change in changes:
                if change.key:
                    self._changed(change)
                elif self._is_away:
                    self._is_away = False
                    self._catalog.awaited = f"no worker serves a model yet; {self.wanted}"

    def _changed(self, change: Change) -> None:
        """One key of the discovery; a record that cannot be read is said once and left out."""
        try:
            if change.key.startswith(CARDS):
                member = self._card_changed(change)
            else:
                member = self._instance_changed(change)
        except RecordError as error:
            self._trouble(str(error))
            return
        if member is not None:
            self._update(member)

    def _card_changed(self, change: Change) -> _Member | None:
        if change.value is None:
            gone = [member for member in self._cards if f"{CARDS}{member[0]}/{member[1]:x}" == change.key]
            for member in gone:
                del self._cards[member]
            return None
        address, instance_id, card = decode_card(change.key, change.value)
        self._cards[address.path, instance_id] = card
        return address.path, instance_id

    def _instance_changed(self, change: Change) -> _Member | None:
        old = self._instances.pop(change.key, None)
        if change.value is None:
            return None if old is None else (old.address.path, old.id)
        instance = decode_instance(change.key, change.value)
        self._instances[change.key] = instance
        return instance.address.path, instance.id

    def _instance(self, member: _Member) -> Instance | None:
        path, instance_id = member
        new = self._instances.get(f"{INSTANCES}{path}/{instance_id:x}")
        return new or self._instances.get(f"{_OLD_INSTANCES}{path}:{instance_id:x}")

    def _update(self, member: _Member) -> None:
        instance = self._instance(member)
        if instance is None:
            self._leave(member)
        elif member in self._members:
            model = self._models[self._members[member]]
            model.pool.add(_worker(instance, model.first))
        elif member not in self._joining and (member in self._cards or self._given is not None):
            self._joining[member] = asyncio.create_task(self._join(member))

    async def _join(self, member: _Member) -> None:
        """Try until it fits or is gone: what cannot be fetched now, or is one too many now, may be right later."""
        try:
            while (instance := self._instance(member)) is not None:
                try:
                    card = await read_card(self._cards.get(member), self._given, paths.cache_dir() / "cards")
                    async with self._admitting:
                        await self._admit(member, instance, card)
                    return
                except (RecordError, CardError, LlmrunError) as error:
                    self._trouble(f"worker {instance.name} at {instance.target} is not used: {error}")
                await asyncio.sleep(_RETRY_S)
        finally:
            self._joining.pop(member, None)

    async def _admit(self, member: _Member, instance: Instance, card: RemoteCard) -> None:
        """Raises RecordError for a worker that does not fit to the others of its model."""
        name = card.card.name
        model = self._models.get(name)
        why_not = card.why_not_with(model.first) if model is not None else None
        if model is not None and why_not is not None:
            if model.pool.workers:
                raise RecordError(why_not)
            self._remove(model)
            model = None
        if model is None:
            model = await self._make(name, card)
        if model.removal is not None:
            model.removal.cancel()
            model.removal = None
        if self._instance(member) is None:  # it left while the model was made
            self._remove_later(model)
            return
        self._members[member] = name
        model.pool.add(_worker(instance, card))
        if self._blocks is not None:
            self._blocks.add(instance.address, instance.id, model.pool.router)
        self._count(model)
        self._says(f"{name}: worker {instance.name} at {instance.target} joins, {len(model.pool.workers)} now")
        self._first.set()

    async def _make(self, name: str, card: RemoteCard) -> _Model:
        settings = self._settings
        router = Router(
            settings.router_mode,
            block_size=card.block_size,
            overlap_weight=settings.overlap_weight,
            temperature=settings.router_temperature,
        )
        pool = WorkerPool(self._client, router)
        limit = settings.migration_limit if settings.migration_limit is not None else card.migration_limit
        engine = RemoteEngine(
            msgspec.structs.replace(card.info, name=f"dyn/{card.info.name}"),
            self._client,
            pool,
            model=name,
            about=self.wanted,
            eos_token_ids=card.card.eos_token_ids,
            mdcsum=card.checksum if card.is_own else "",
            migration_limit=limit,
        )
        service: ChatService
        if card.takes_text:
            service = RemoteText(EngineSpec(name=f"dyn/{card.info.name}", card=card.card), engine)
        else:
            service = ChatPipeline(card.card, engine, lenient=self._lenient, say=warn)
        await service.start()
        model = self._models[name] = _Model(name, card, service, pool)
        self._catalog.add(service, *([self._alias] if self._alias else []))
        return model

    def _count(self, model: _Model) -> None:
        """What runs at once is what all its workers run at once."""
        total = sum(worker.max_running for worker in model.pool.workers)
        model.service.info = msgspec.structs.replace(model.service.info, max_running=max(1, total))

    def _leave(self, member: _Member) -> None:
        name = self._members.pop(member, None)
        model = self._models.get(name) if name is not None else None
        if model is None:
            return
        model.pool.remove(member[1])
        if self._blocks is not None:
            self._blocks.remove(member[1])
        self._count(model)
        self._says(f"{model.name}: worker {member[1]:x} leaves, {len(model.pool.workers)} now")
        self._remove_later(model)

    def _remove_later(self, model: _Model) -> None:
        """A pool that was asked for by its address stays on offer; requests hear what is missing."""
        if not model.pool.workers and self._address is None and model.removal is None:
            model.removal = asyncio.get_running_loop().call_later(_GRACE_S, self._remove, model)

    def _remove(self, model: _Model) -> None:
        if self._models.get(model.name) is not model:
            return
        del self._models[model.name]
        self._catalog.remove(model.name)
        if self._alias:
            self._catalog.remove(self._alias)
        self._says(f"{model.name} is not served any more")
        task = asyncio.create_task(_retire(model))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _trouble(self, message: str) -> None:
        """Said once; and whoever asks while there is no model hears it too."""
        self._catalog.awaited = f"no worker serves a model yet; {self.wanted}; {message}"
        if message not in self._said:
            self._said.add(message)
            warn(message)

    async def close(self) -> None:
        """Safe twice."""
        tasks = [*self._watching, *self._joining.values(), *self._closing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for model in list(self._models.values()):
            if model.removal is not None:
                model.removal.cancel()
            await model.service.close()
        self._models.clear()
        if self._blocks is not None:
            await self._blocks.close()
        await self._client.close()
        await self._store.close()


def _worker(instance: Instance, card: RemoteCard) -> Worker:
    return Worker(instance, is_own=card.is_own, max_running=card.info.max_running)


async def _retire(model: _Model) -> None:
    """Close it when its last answer has ended."""
    while model.pool.num_streams:  # noqa: ASYNC110 - nobody waits for this
        await asyncio.sleep(1.0)
    await model.service.close()
