"""Who we are to etcd and NATS, and whom we trust: credentials and TLS, by the variables that Dynamo reads.

Owns the variables' names and rules, and that no secret of theirs stands in a message. A certificate or a key is a path,
or the PEM text itself (as Dynamo takes it for etcd). Knows nothing of the two protocols.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from runner.errors import UsageError

_PEM = "-----BEGIN"
_HOST_MISMATCH = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH."""


class TlsNames(NamedTuple):
    """The variables of one service's TLS, for reading them and for messages."""

    service: str
    ca: str
    cert: str
    key: str


ETCD_TLS = TlsNames("etcd", "ETCD_AUTH_CA", "ETCD_AUTH_CLIENT_CERT", "ETCD_AUTH_CLIENT_KEY")
NATS_TLS = TlsNames("NATS", "NATS_TLS_CA_CERT_PATH", "NATS_TLS_CLIENT_CERT_PATH", "NATS_TLS_CLIENT_KEY_PATH")
_INSECURE = "NATS_TLS_INSECURE"


@dataclass(frozen=True)
class EtcdLogin:
    """What etcd is told and shown. `tls` None: what the system trusts, where the URL says https."""

    user: str | None = None
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)


@dataclass(frozen=True)
class NatsLogin:
    """What NATS is told and shown: arguments of nats.connect, and for messages the variables that they come from."""

    arguments: dict[str, Any] = field(default_factory=dict, repr=False)
    source: str = ""
    tls: ssl.SSLContext | None = field(default=None, repr=False)


def read_etcd_login() -> EtcdLogin:
    """ETCD_AUTH_USERNAME and _PASSWORD; ETCD_AUTH_CA, _CLIENT_CERT, _CLIENT_KEY. Raises UsageError."""
    user, password = _pair("ETCD_AUTH_USERNAME", "ETCD_AUTH_PASSWORD")
    return EtcdLogin(user, password, _context(ETCD_TLS))


def read_nats_login() -> NatsLogin:
    """The first that is given, in Dynamo's order: NATS_AUTH_USERNAME and _PASSWORD, _TOKEN, _NKEY, _CREDENTIALS_FILE.

    With NATS_TLS_*. Raises UsageError.
    """
    tls = _context(NATS_TLS)
    if (os.environ.get(_INSECURE) or "").lower() in ("1", "true", "yes", "on"):
        tls = tls or ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    user, password = _pair("NATS_AUTH_USERNAME", "NATS_AUTH_PASSWORD")
    if user:
        return NatsLogin({"user": user, "password": password}, "NATS_AUTH_USERNAME and NATS_AUTH_PASSWORD", tls)
    if token := os.environ.get("NATS_AUTH_TOKEN"):
        return NatsLogin({"token": token}, "NATS_AUTH_TOKEN", tls)
    if seed := os.environ.get("NATS_AUTH_NKEY"):
        return NatsLogin({"nkeys_seed_str": _seed(seed)}, "NATS_AUTH_NKEY", tls)
    if path := os.environ.get("NATS_AUTH_CREDENTIALS_FILE"):
        return NatsLogin({"user_credentials": _credentials(path)}, "NATS_AUTH_CREDENTIALS_FILE", tls)
    return NatsLogin(tls=tls)


def bare_url(url: str) -> str:
    """One URL, or several with commas, without the users and passwords in them: as it may stand in a message."""
    return ",".join(_split(part)[0] for part in url.split(","))


def split_url(url: str) -> tuple[str, str, str]:
    """One URL without what stands before its @, and that: user and password, empty where there is none."""
    bare, info = _split(url)
    user, _, password = info.partition(":")
    return bare, user, password


def _split(url: str) -> tuple[str, str]:
    before, at, host = url.rpartition("@")
    if not at:
        return url, ""
    scheme, slashes, info = before.rpartition("://")
    return f"{scheme}{slashes}{host}", info


def tls_trouble(error: BaseException, names: TlsNames) -> str | None:
    """What TLS has against it, with the next step; None where the trouble is another one."""
    found = _ssl_error(error)
    if isinstance(found, ssl.SSLCertVerificationError):
        if found.verify_code in _HOST_MISMATCH:
            return f"its certificate is not for this address ({found.verify_message}); use a name that stands in it"
        return (
            f"its certificate is not trusted ({found.verify_message}); "
            f"{names.ca}=FILE names the certificate (PEM) of the authority that signed it"
        )
    if found is None:
        return None
    reason = found.reason or str(found)
    if "WRONG_VERSION" in reason or "RECORD_LAYER" in reason:
        return "it does not speak TLS there, and we were told to"
    if any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE")):
        return f"it does not accept our certificate, or wants one ({reason}); {names.cert} and {names.key} name ours"
    return f"TLS failed: {reason}"


def _ssl_error(error: BaseException | None) -> ssl.SSLError | None:
    """The one among an error and what led to it; aiohttp keeps it in an error of its own."""
    seen = 0
    while error is not None and seen < 8:
        for one in (getattr(error, "certificate_error", None), getattr(error, "os_error", None), error):
            if isinstance(one, ssl.SSLError):
                return one
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _pair(first: str, second: str) -> tuple[str | None, str]:
    """Two variables that go together. Raises UsageError."""
    one, two = os.environ.get(first), os.environ.get(second)
    if bool(one) != bool(two):
        given, missing = (first, second) if one else (second, first)
        raise UsageError(f"{given} is set and {missing} is not; set both, or neither")
    return one or None, two or ""


def _context(names: TlsNames) -> ssl.SSLContext | None:
    """None where no variable is set. Raises UsageError."""
    authority, cert, key = (os.environ.get(name) or "" for name in names[1:])
    if key and not cert:
        raise UsageError(f"{names.key} is set and {names.cert} is not; set both, or neither")
    if not authority and not cert:
        return None
    context: ssl.SSLContext = _checked(names.ca, authority, lambda: _trusting(authority))
    if cert:
        _checked(names.cert, cert, lambda: _present(context, cert, key))
    return context


def _trusting(authority: str) -> ssl.SSLContext:
    if _PEM in authority:
        return ssl.create_default_context(cadata=authority)
    return ssl.create_default_context(cafile=authority or None)


def _present(context: ssl.SSLContext, cert: str, key: str) -> None:
    with _as_file(cert) as cert_path, _as_file(key) as key_path:
        # OpenSSL would ask the terminal for the password of a key that has one.
        context.load_cert_chain(cert_path, key_path or None, password=lambda: b"")


@contextlib.contextmanager
def _as_file(value: str) -> Iterator[str]:
    """A path as it is; PEM text in a file of ours alone, as long as it is needed."""
    if _PEM not in value:
        yield value
        return
    with tempfile.TemporaryDirectory() as folder:  # of mode 0700
        path = Path(folder) / "pem"
        path.write_text(value)
        yield str(path)


def _checked(name: str, value: str, load: Any) -> Any:
    """Raises UsageError that says which variable names what cannot be used."""
    try:
        return load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        what = "its PEM text" if _PEM in value else repr(value)
        reason = error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None)
        raise UsageError(f"{name}: {what} cannot be used: {reason or error}; a file in PEM form is wanted") from None


def _seed(seed: str) -> str:
    nkeys = _nkeys("NATS_AUTH_NKEY")
    try:
        nkeys.from_seed(bytearray(seed.strip().encode())).wipe()
    except Exception:  # of many kinds; what they say may hold the seed
        raise UsageError("NATS_AUTH_NKEY is no seed of a user: it begins with SU, as nk -gen user prints it") from None
    return seed.strip()


def _credentials(path: str) -> str:
    _nkeys("NATS_AUTH_CREDENTIALS_FILE")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"NATS_AUTH_CREDENTIALS_FILE: {path!r} cannot be read: {reason}") from None
    if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
        raise UsageError(
            f"NATS_AUTH_CREDENTIALS_FILE: {path!r} has no user JWT with its seed; nsc generate creds writes such files"
        )
    return path


def _nkeys(name: str) -> Any:
    try:
        import nkeys
    except ImportError:
        raise UsageError(f"{name} needs the package nkeys: pip install nkeys") from None
    return nkeys
