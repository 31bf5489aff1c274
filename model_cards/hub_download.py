"""One file of a Hub repository into the cache that other tools share, resuming where an earlier try stopped.

Owns the blob, its link in the snapshot, and the reference (layout: huggingface_hub's `manage-cache` guide).
`hf_hub_download` of huggingface_hub 1.x and later begins again after an interruption (its pull request 4228), so the
transfer is done here, into the name that earlier versions resume too: `blobs/<etag>.incomplete`, under their lock.
Raises what huggingface_hub raises (hub.py explains it to people).
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from model_cards.errors import DownloadError

_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_READ_BYTES = 4 * 1024 * 1024


def download_file(repo: str, file: str, revision: str, *, endpoint: str, cache: Path, bar: type[Any] | None) -> Path:
    """The file's path in the cache. `bar`: a tqdm class, None for huggingface_hub's own."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils._fixes import WeakFileLock

    parts = PurePosixPath(file).parts
    if file.startswith("/") or ".." in parts or "\\" in file:
        raise DownloadError(f"{repo} lists a file outside its folder: {file!r}; it is not downloaded")
    url = hf_hub_url(repo, file, revision=revision, endpoint=endpoint)
    metadata = get_hf_file_metadata(url, endpoint=endpoint)
    commit, etag = metadata.commit_hash, metadata.etag
    if not commit or not etag or "/" in etag or "/" in commit:
        raise DownloadError(f"{endpoint} gives no commit and ETag for {file} of {repo}; is HF_ENDPOINT a Hub?")
    if metadata.size is not None and metadata.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        # The Hub sends files of more than 50 GB by its Xet protocol only, which does not resume.
        return Path(hf_hub_download(repo, file, revision=revision, cache_dir=cache, endpoint=endpoint, tqdm_class=bar))
    folder = cache / f"models--{repo.replace('/', '--')}"
    link = folder.joinpath("snapshots", commit, *parts)
    if not link.exists():
        lock = cache / ".locks" / folder.name / f"{etag}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            blob = folder / "blobs" / etag
            if not blob.exists():
                _transfer(metadata, url, blob, file, bar)
            _link(link, blob)
    _write_reference(folder, revision, commit)
    return link


def _transfer(metadata: Any, url: str, blob: Path, file: str, bar: type[Any] | None) -> None:
    """Fetch into `<blob>.incomplete`, from where it ends; then make it the blob. Raises DownloadError."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    headers = build_hf_headers()
    if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the token is for the Hub, not for its storage
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{blob.name}.incomplete")
    begun = partial.stat().st_size if partial.exists() else 0
    if metadata.size is not None and begun > metadata.size:
        begun = 0
    with partial.open("r+b" if begun else "wb") as stream:
        stream.seek(begun)
        http_get(
            metadata.location,
            stream,
            resume_size=begun,
            headers=headers,
            expected_size=metadata.size,
            displayed_filename=file,
            tqdm_class=bar,
        )
    if begun and _SHA256.match(blob.name) and _sha256(partial) != blob.name:
        partial.unlink()
        raise DownloadError(f"the resumed download of {file} has wrong bytes and was thrown away; run this again")
    partial.replace(blob)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _link(link: Path, blob: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)  # it pointed to a blob that is gone
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:  # no symbolic links on this file system: the file itself lives in the snapshot, as the guide says
        blob.replace(link)


def _write_reference(folder: Path, revision: str, commit: str) -> None:
    reference = folder / "refs" / revision
    if revision == commit or (reference.exists() and reference.read_text() == commit):
        return
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
