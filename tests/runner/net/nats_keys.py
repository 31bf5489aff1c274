"""Keys and credentials of NATS, as nsc makes them: an nkey, and a user of an account of an operator (JWT)."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from pathlib import Path
from typing import Any, NamedTuple

import nkeys


class Key(NamedTuple):
    seed: str
    public: str

    def sign(self, claims: dict[str, Any]) -> str:
        """A JWT of version 2 (nats-io/jwt)."""
        body = {"iat": int(time.time()), "iss": self.public, **claims}
        body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
        parts = [_encode({"typ": "JWT", "alg": "ed25519-nkey"}), _encode(body)]
        text = ".".join(parts)
        return f"{text}.{_base64(nkeys.from_seed(bytearray(self.seed.encode())).sign(text.encode()))}"


def make_key(kind: int = nkeys.PREFIX_BYTE_USER) -> Key:
    seed = bytes(nkeys.encode_seed(secrets.token_bytes(32), kind))
    return Key(seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode())


def operator_config(folder: Path) -> tuple[str, str]:
    """Configuration of a server that trusts an operator, and the text of a credentials file of one of its users."""
    operator, account, user = (
        make_key(kind) for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
    )
    own = operator.sign({"name": "op", "sub": operator.public, "nats": {"type": "operator", "version": 2}})
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    its = operator.sign(
        {
            "name": "acc",
            "sub": account.public,
            "nats": {"type": "account", "version": 2, "limits": {**limits, "wildcards": True}},
        }
    )
    limits = dict.fromkeys(("subs", "data", "payload"), -1)
    users = account.sign(
        {"name": "me", "sub": user.public, "nats": {"type": "user", "version": 2, "pub": {}, "sub": {}, **limits}}
    )
    (folder / "operator.jwt").write_text(own)
    config = (
        f'operator: "{folder / "operator.jwt"}"\nresolver: MEMORY\nresolver_preload: {{ {account.public}: "{its}" }}\n'
    )
    credentials = (
        f"-----BEGIN NATS USER JWT-----\n{users}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )
    return config, credentials


def _encode(part: dict[str, Any]) -> str:
    return _base64(json.dumps(part).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
