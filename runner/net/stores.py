"""Which store discovery is in: etcd or a folder, from the flag --store and the variables that Dynamo uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from runner import paths
from runner.errors import UsageError
from runner.net.store import Store

STORES = ("etcd", "file")
_ETCD_VARIABLE, _FOLDER_VARIABLE = "ETCD_ENDPOINTS", "LLMRUN_STORE_PATH"
_DEFAULT_ETCD = "http://localhost:2379"


def open_store(kind: str | None, environ: Mapping[str, str] = os.environ) -> Store:
    """The store; connects to nothing yet. Without `kind`: etcd if ETCD_ENDPOINTS names one, else the user's folder.

    Raises UsageError.
    """
    endpoints = tuple(one.strip() for one in environ.get(_ETCD_VARIABLE, "").split(",") if one.strip())
    if kind is None:
        kind = "etcd" if endpoints else "file"
    if kind == "etcd":
        from runner.net.etcd import EtcdStore

        return EtcdStore(endpoints or (_DEFAULT_ETCD,))
    if kind != "file":
        raise UsageError(f"--store: got {kind!r}; allowed: {', '.join(STORES)}")
    from runner.net.folder import FolderStore

    folder = environ.get(_FOLDER_VARIABLE)
    return FolderStore(Path(folder).expanduser() if folder else paths.state_dir() / "workers")
