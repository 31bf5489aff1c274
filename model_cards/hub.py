"""The Hugging Face Hub and the cache on this machine that it shares with other tools.

Owns downloads, the listing and clearing of the cache, and what a failure of the network means to people. Honours
HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN as they are now, not as they were at import.
`huggingface_hub` is imported inside functions: it takes a quarter of a second. Does not know which files make a model
(hub_names.py).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from model_cards.errors import CardError, DownloadError, ModelNotFound
from model_cards.hub_names import HubName, choose_files, quant_of

Progress = Callable[[str, int, int], None]
"""progress(file, bytes done, bytes in all), called as bytes arrive; bytes of earlier tries are counted."""
_TRUE = ("1", "true", "yes", "on")


class HubSettings(NamedTuple):
    """The environment's say."""

    endpoint: str
    cache: Path
    is_offline: bool

    @classmethod
    def from_environment(cls) -> HubSettings:
        """Read HF_* as huggingface_hub does."""
        env = os.environ
        home = Path(env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
        cache = Path(env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or home / "hub").expanduser()
        offline = any(env.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
        return cls((env.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/"), cache, offline)


def fetch_model(name: HubName, *, download: bool = True, progress: Progress | None = None) -> Path:
    """The model's path in the cache: the (first) GGUF file, else the folder. Downloads what is missing, and resumes.

    Offline, with `download=False` or without a network, the cache must hold it. Raises DownloadError with the next
    step, ModelNotFound where the repository or the file does not exist.
    """
    settings = HubSettings.from_environment()
    if settings.is_offline or not download:
        reason = "HF_HUB_OFFLINE is set" if settings.is_offline else "nothing is downloaded now"
        return _from_cache(name, settings, reason)
    try:
        with _explained(name, settings):
            files = _list_files(name, settings)
    except _Unreachable as error:
        return _from_cache(name, settings, str(error))
    chosen = choose_files(name, files)
    with _explained(name, settings):
        paths = [_fetch_file(name, file, settings, progress) for file in chosen]
    return _model_path(chosen, paths)


def _model_path(chosen: list[str], paths: list[Path]) -> Path:
    if chosen[0].endswith(".gguf"):
        return paths[0]
    return paths[chosen.index("config.json")].parent


def _list_files(name: HubName, settings: HubSettings) -> dict[str, int]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi(endpoint=settings.endpoint).list_repo_tree(name.repo, recursive=True, revision=name.revision)
    return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}


def _fetch_file(name: HubName, file: str, settings: HubSettings, progress: Progress | None) -> Path:
    from model_cards.hub_download import download_file

    # Without a listener huggingface_hub's own bar is drawn on a terminal's stderr, and nothing elsewhere.
    bar = None if progress is None and sys.stderr.isatty() else _make_bar(file, progress)
    return download_file(name.repo, file, name.revision, endpoint=settings.endpoint, cache=settings.cache, bar=bar)


def _make_bar(file: str, progress: Progress | None) -> type[Any]:
    """A progress bar class for huggingface_hub that reports instead of drawing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.done_bytes = int(kwargs.get("initial") or 0)
            self.all_bytes = int(kwargs.get("total") or 0)
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            self.update(0)

        def update(self, n: float | None = 1) -> bool | None:
            self.done_bytes += int(n or 0)
            if progress is not None:
                progress(file, self.done_bytes, max(self.all_bytes, self.done_bytes))
            return None

    return Bar


class _Unreachable(DownloadError):
    """No answer from the Hub."""


@contextmanager
def _explained(name: HubName, settings: HubSettings) -> Iterator[None]:
    """Turn what huggingface_hub raises into CardErrors with the next step."""
    from huggingface_hub import errors

    try:
        yield
    except CardError:
        raise
    except errors.GatedRepoError:
        raise DownloadError(
            f"{name.repo} is gated: accept its terms at {settings.endpoint}/{name.repo}, then set HF_TOKEN to a token "
            "of that account"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelNotFound(f"{name.repo} has no revision {name.revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise ModelNotFound(
            f"there is no model {name.repo} at {settings.endpoint}; check the spelling, or, if it is private, set "
            "HF_TOKEN"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise _Unreachable(f"{settings.endpoint} does not answer for {name.repo}: {_first_line(error)}") from None
    except errors.EntryNotFoundError as error:
        raise ModelNotFound(f"{name.repo} has no such file: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        raise _explain_status(name, settings, error) from None
    except errors.HFValidationError as error:
        raise ModelNotFound(f"{name.repo} is not a Hub name: {_first_line(error)}") from None
    except OSError as error:
        raise _explain_os_error(name, settings, error) from None
    except Exception as error:  # the HTTP client's own errors; which client it is depends on huggingface_hub
        if not _is_network_error(error):
            raise
        raise _Unreachable(f"{settings.endpoint} cannot be reached ({type(error).__name__})") from None


def _is_network_error(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _explain_status(name: HubName, settings: HubSettings, error: Any) -> CardError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        has_token = bool(os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"))
        why = "HF_TOKEN was sent and refused; check that it is valid and may read this model" if has_token else (
            "set HF_TOKEN to a token that may read it"
        )  # fmt: skip
        return DownloadError(f"{settings.endpoint} refuses {name.repo} (HTTP {status}): {why}")
    if status == 404:
        return ModelNotFound(f"there is no model {name.repo} at {settings.endpoint}; check the spelling")
    if status == 429:
        return DownloadError(f"{settings.endpoint} asks to wait (HTTP 429); try again later, or set HF_TOKEN")
    if status is not None and status >= 500:
        return _Unreachable(f"{settings.endpoint} is in trouble (HTTP {status})")
    return DownloadError(f"{name.repo} cannot be downloaded: {_first_line(error)}")


def _explain_os_error(name: HubName, settings: HubSettings, error: OSError) -> CardError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(
            f"the disk of {settings.cache} is full; free some space (llmrun ls, llmrun rm), or set HF_HOME to another "
            "disk; the download resumes where it stopped"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return DownloadError(f"cannot write to {settings.cache}: {error.strerror}; set HF_HOME to a folder you own")
    if "Consistency check failed" in str(error):
        return DownloadError(
            f"the download of {name.repo} broke off; run the same command again, it resumes where it stopped"
        )
    return _Unreachable(f"{name.repo} cannot be downloaded: {_first_line(error)}")


def _from_cache(name: HubName, settings: HubSettings, reason: str) -> Path:
    """The model out of the cache alone. Raises DownloadError that says why the network was not asked."""
    folder = snapshot_folder(name, settings)
    files = {} if folder is None else _files_below(folder)
    try:
        if folder is None or not files:
            raise ModelNotFound("nothing of it is there")
        chosen = choose_files(name, files)
        _check_complete(folder, chosen)
    except ModelNotFound as error:
        step = "unset HF_HUB_OFFLINE" if settings.is_offline else "connect to the network"
        raise DownloadError(
            f"{name.repo} is not in the cache {settings.cache} ({error}), and {reason}; {step} and run "
            f"`llmrun pull {spell(name)}`"
        ) from None
    return _model_path(chosen, [folder / file for file in chosen])


def _check_complete(folder: Path, chosen: list[str]) -> None:
    """An interrupted download leaves some shards only; the index knows all of them."""
    from model_cards.hf_card import read_json

    index = read_json(folder / "model.safetensors.index.json") if not chosen[0].endswith(".gguf") else None
    wanted = set((index or {}).get("weight_map", {}).values()) if isinstance(index, dict) else set()
    missing = sorted(file for file in wanted if not (folder / file).exists())
    if missing:
        raise ModelNotFound(f"{len(missing)} of {len(wanted)} weight files are missing")


def spell(name: HubName) -> str:
    """The name as a user would type it."""
    tag = name.quant or name.file
    return f"{name.repo}:{tag}" if tag else name.repo


def snapshot_folder(name: HubName, settings: HubSettings) -> Path | None:
    """The cached snapshot of the revision; None without one (layout: huggingface_hub's `manage-cache` guide)."""
    folder = settings.cache / f"models--{name.repo.replace('/', '--')}"
    try:
        commit = (folder / "refs" / name.revision).read_text().strip()
    except OSError:
        commit = name.revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _files_below(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())  # is_file: not a link to a blob that is gone
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


class CachedModel(NamedTuple):
    """One repository in the cache."""

    repo: str
    num_bytes: int
    quants: tuple[str, ...]
    """Quantizations of its GGUF files; empty for a folder of safetensors."""
    num_files: int
    last_used: float
    """Seconds since 1970."""
    path: Path
    unfinished_bytes: int
    """Downloads that were interrupted; they resume."""


def list_cached() -> list[CachedModel]:
    """Every model in the cache, by name. Raises CardError where the cache cannot be read."""
    settings = HubSettings.from_environment()
    if not settings.cache.is_dir():
        return []
    try:
        folders = sorted(path for path in settings.cache.glob("models--*") if path.is_dir())
        return [_describe_cached(folder) for folder in folders]
    except OSError as error:
        raise CardError(f"cannot read the cache {settings.cache}: {error.strerror}") from error


def _describe_cached(folder: Path) -> CachedModel:
    blobs = [path for path in (folder / "blobs").glob("*") if path.is_file() and not path.is_symlink()]
    unfinished = [path for path in blobs if path.name.endswith(".incomplete")]
    names = {name for snapshot in (folder / "snapshots").glob("*") for name in _files_below(snapshot)}
    ggufs = [name for name in names if name.endswith(".gguf")]
    stats = [path.stat() for path in blobs]
    return CachedModel(
        repo=folder.name.removeprefix("models--").replace("--", "/", 1),
        num_bytes=sum(stat.st_size for stat in stats),
        quants=tuple(sorted({quant_of(file) or "?" for file in ggufs})),
        num_files=len(names),
        last_used=max((max(stat.st_atime, stat.st_mtime) for stat in stats), default=folder.stat().st_mtime),
        path=folder,
        unfinished_bytes=sum(path.stat().st_size for path in unfinished),
    )


def remove_cached(model: CachedModel) -> int:
    """Delete a repository from the cache; returns the bytes freed. Raises CardError naming what is in the way."""
    import shutil

    try:
        shutil.rmtree(model.path)
    except OSError as error:
        raise CardError(f"cannot remove {error.filename or model.path}: {error.strerror}") from error
    shutil.rmtree(model.path.parent / ".locks" / model.path.name, ignore_errors=True)
    return model.num_bytes
