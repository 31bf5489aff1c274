"""TLS: the certificate and key of the server, checked before it starts."""

from __future__ import annotations

import ssl
from pathlib import Path

from runner.errors import UsageError
from runner.options import RunOptions


def load_tls(options: RunOptions) -> ssl.SSLContext | None:
    """The context of --tls-cert-path and --tls-key-path; None without them. Raises UsageError."""
    cert, key = options.tls_cert_path, options.tls_key_path
    if not cert and not key:
        return None
    if not cert or not key:
        raise UsageError("--tls-cert-path and --tls-key-path go together; give both")
    for flag, path in (("--tls-cert-path", cert), ("--tls-key-path", key)):
        _check_readable(flag, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        raise UsageError(f"TLS: {cert} and {key} are not a certificate and its key in PEM form ({error})") from error
    return context


def _no_password() -> str:
    raise UsageError("--tls-key-path: the key is encrypted; decrypt it first (openssl pkey -in KEY -out PLAIN_KEY)")


def _check_readable(flag: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be read ({error.strerror})") from error
