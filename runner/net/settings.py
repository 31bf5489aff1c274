"""What dyn:// is told by flags and environment, as one record, and the store that it names."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from runner import paths
from runner.errors import UsageError
from runner.net.credentials import bare_url, read_etcd_login, read_nats_login
from runner.net.records import Plane
from runner.net.store import Store

STORES = ("etcd", "file")
PLANES = ("tcp", "nats")
ROUTER_MODES = ("round-robin", "random", "least-loaded", "kv")
DEFAULT_NATS = "nats://127.0.0.1:4222"
DEFAULT_ETCD = "http://127.0.0.1:2379"
_ANY_ADDRESS = ("0.0.0.0", "::", "*")


class NetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Resolved: every choice is made."""

    store: str
    folder: Path
    etcd: tuple[str, ...] = (DEFAULT_ETCD,)
    """May hold a password, as may `nats`: `bare_url` before they are shown."""
    nats: str = DEFAULT_NATS
    plane: Plane = "tcp"
    host: str = "127.0.0.1"
    router_mode: str = "round-robin"
    router_temperature: float = 0.0
    overlap_weight: float = 1.0
    migration_limit: int | None = None
    """None: what the model's card says."""
    kv_events: bool = False
    """Told by workers, heard by ingresses that route by them."""

    @property
    def is_cut_off(self) -> bool:
        """Whether others are told an address of this machine alone, in an etcd that is on another machine."""
        bare = [bare_url(url) for url in self.etcd]
        hosts = [urlsplit(url if "://" in url else f"//{url}").hostname or "" for url in bare]
        return self.store == "etcd" and _is_loopback(self.host) and not any(map(_is_loopback, hosts))


def read_settings(options: Any) -> NetSettings:
    """Of RunOptions and the variables that Dynamo uses too. Raises UsageError."""
    etcd = _etcd_endpoints()
    plane = options.request_plane or os.environ.get("DYN_REQUEST_PLANE") or "tcp"
    store = options.store or ("etcd" if etcd else "file")
    _one_of("--store", store, STORES)
    _one_of("--request-plane", plane, PLANES)
    _one_of("--router-mode", options.router_mode, ROUTER_MODES)
    if options.dyn_host in _ANY_ADDRESS:
        raise UsageError(f"--dyn-host: {options.dyn_host} is no address that others can reach; name this machine's own")
    _check_credentials(store, etcd)
    return NetSettings(
        store=store,
        folder=_folder(options.store_path),
        etcd=etcd or (DEFAULT_ETCD,),
        nats=os.environ.get("NATS_SERVER") or DEFAULT_NATS,
        plane="nats_tcp" if plane == "nats" else "tcp",
        host=options.dyn_host,
        router_mode=options.router_mode,
        router_temperature=options.router_temperature,
        overlap_weight=options.kv_overlap_score_weight,
        migration_limit=options.migration_limit,
        kv_events=not options.no_kv_events and (plane == "nats" or bool(os.environ.get("NATS_SERVER"))),
    )


def make_store(settings: NetSettings) -> Store:
    """The store; nothing is connected yet."""
    if settings.store == "etcd":
        from runner.net.etcd import EtcdStore

        return EtcdStore(settings.etcd, login=read_etcd_login())
    from runner.net.folder import FolderStore

    return FolderStore(settings.folder)


def _check_credentials(store: str, etcd: tuple[str, ...]) -> None:
    """Raises UsageError now for what would not be usable later."""
    read_nats_login()
    if store == "etcd" and read_etcd_login().tls is not None:
        plain = next((url for url in etcd if url.startswith("http://")), None)
        if plain is not None:
            raise UsageError(
                f"ETCD_AUTH_CA or ETCD_AUTH_CLIENT_CERT is set, and {bare_url(plain)} has no TLS: https://…"
            )


def _etcd_endpoints() -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in os.environ.get("ETCD_ENDPOINTS", "").split(","))))


def _folder(path: str | None) -> Path:
    return Path(path).expanduser() if path else paths.state_dir() / "workers"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _one_of(flag: str, got: str, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        raise UsageError(f"{flag}: got {got!r}; allowed: {', '.join(allowed)}")
