"""API keys: where they come from, and the constant-time check of a request. Knows nothing of routes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from runner.errors import UsageError
from runner.frontends.http.errors import Unauthorized
from runner.options import RunOptions

PUBLIC_PATHS = frozenset({"/health", "/v1/health", "/live", "/ready"})
"""Answered without a key: probes have none."""


class Keys:
    """The accepted keys, kept as hashes so that comparing tells nothing, not even a length. No keys: all may come."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._hashes = [_hash(key) for key in dict.fromkeys(keys)]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises Unauthorized unless `Authorization: Bearer KEY` or `x-api-key: KEY` is one of the keys."""
        if not self._hashes:
            return
        given = _given(headers)
        if not given:
            raise Unauthorized("no API key was given; send Authorization: Bearer KEY, or x-api-key: KEY")
        digest = _hash(given)
        # No early exit: how long it takes must not tell which key was near.
        if sum([hmac.compare_digest(digest, known) for known in self._hashes]) == 0:
            raise Unauthorized("the API key is not one of this server's keys")


def load_keys(options: RunOptions) -> Keys:
    """--api-key and the lines of --api-key-file (# starts a comment). Raises UsageError."""
    keys = [key.strip() for key in options.api_key]
    if not all(keys):
        raise UsageError("--api-key is empty; give a key or leave it out")
    if options.api_key_file:
        keys += _file_keys(options.api_key_file)
    for key in keys:
        if not key.isascii() or not key.isprintable():
            raise UsageError("an API key has characters that cannot be sent in an HTTP header; use printable ASCII")
    return Keys(tuple(keys))


def _file_keys(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"--api-key-file {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--api-key-file {path}: is not UTF-8 text") from error
    keys = [line.strip() for line in lines]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise UsageError(f"--api-key-file {path}: has no key; write one key a line")
    return keys


def _given(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "").strip()


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
