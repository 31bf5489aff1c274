"""Catalog: the served models by name. Knows nothing of how they are served or by what."""

from __future__ import annotations

from runner.errors import EngineBusy, UnknownModel
from runner.services import ChatService


class Catalog:
    """Models come and go while frontends run (dyn://); the first one added is the default."""

    def __init__(self) -> None:
        self._services: dict[str, ChatService] = {}
        self.awaited = ""
        """Where models come from while there are none (dyn://); a request then is too early, not wrong."""

    def add(self, service: ChatService, *aliases: str) -> None:
        """Serve a model under its card's name and under each alias. The caller has started it."""
        for name in (service.card.name, *aliases):
            self._services[name] = service

    def remove(self, name: str) -> ChatService | None:
        """Stop offering a name; returns the service that had it (the caller closes it)."""
        return self._services.pop(name, None)

    def names(self) -> list[str]:
        """Names on offer, oldest first."""
        return list(self._services)

    def default(self) -> ChatService:
        """The first model. Raises UnknownModel if there is none, EngineBusy while they are awaited."""
        if not self._services:
            if self.awaited:
                raise EngineBusy(self.awaited)
            raise UnknownModel("no model is served yet")
        return next(iter(self._services.values()))

    def get(self, name: str) -> ChatService:
        """The model of that name; an empty name is the default. Raises UnknownModel naming those on offer."""
        if not name:
            return self.default()
        service = self._services.get(name)
        if service is None and self.awaited and not self._services:
            raise EngineBusy(self.awaited)
        if service is None:
            offer = ", ".join(self._services) or "none"
            raise UnknownModel(f"no model {name!r} is served here; on offer: {offer}", field="model")
        return service

    def resolve(self, name: str) -> tuple[ChatService, str | None]:
        """The model of that name; or the model with an adapter of that name, and the adapter. Raises UnknownModel."""
        if name and name not in self._services:
            for service in self._services.values():
                if f"adapter:{name}" in service.info.capabilities:
                    return service, name
        return self.get(name), None
