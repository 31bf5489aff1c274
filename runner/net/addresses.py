"""Addresses of endpoints: dyn://namespace.component.endpoint, and what is named after them.

The grammar and the defaults are Dynamo's (lib/runtime/src/protocols.rs).
"""

from __future__ import annotations

import re

import msgspec

from runner.errors import UsageError

DEFAULT_NAMESPACE, DEFAULT_COMPONENT, DEFAULT_ENDPOINT = "NS", "C", "E"
_PART = re.compile(r"[A-Za-z0-9_-]+")


class Address(msgspec.Struct, frozen=True):
    """One pool of workers that do the same."""

    namespace: str = DEFAULT_NAMESPACE
    component: str = DEFAULT_COMPONENT
    endpoint: str = DEFAULT_ENDPOINT

    def __str__(self) -> str:
        return f"dyn://{self.namespace}.{self.component}.{self.endpoint}"

    @property
    def path(self) -> str:
        """As it stands in keys of the discovery."""
        return f"{self.namespace}/{self.component}/{self.endpoint}"

    def subject(self, instance_id: int) -> str:
        """The NATS subject of one instance."""
        return f"{slugify(f'{self.namespace}_{self.component}')}.{self.endpoint}-{instance_id:x}"


def parse_address(text: str) -> Address:
    """`dyn://a.b.c`, `//a.b.c`, `a/b/c`; one part is the component, two are namespace and component.

    Parts after the third join the endpoint with `_`. Raises UsageError.
    """
    bare = text.removeprefix("dyn:").removeprefix("//")
    parts = [part for part in re.split(r"[./]", bare) if part]
    wrong = [part for part in parts if not _PART.fullmatch(part)]
    if not parts or wrong:
        got = f"{wrong[0]!r} in {text!r}" if wrong else repr(text)
        raise UsageError(f"{got} is no address; dyn://namespace.component.endpoint of letters, digits, - and _")
    if len(parts) == 1:
        return Address(component=parts[0])
    if len(parts) == 2:
        return Address(parts[0], parts[1])
    return Address(parts[0], parts[1], "_".join(parts[2:]))


def parse_host_port(text: str) -> tuple[str, int]:
    """`host:port` or `[IPv6]:port` of another machine's record. Raises ValueError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or len(host) > 255 or not host.isprintable() or not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError(f"{text[:100]!r} is no host:port")
    if not 0 < int(port) < 1 << 16:
        raise ValueError(f"{text[:100]!r}: a port is a number from 1 to 65535")
    return host, int(port)


def slugify(text: str) -> str:
    """Dynamo's rule (lib/runtime/src/slug.rs)."""
    return re.sub(r"[^a-z0-9_-]", "_", text.lower()).lstrip("_")
