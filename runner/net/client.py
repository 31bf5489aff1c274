"""The ingress' end of the wire: one request to one instance, and the stream of its answer. Chooses nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from runner.net.codecs import encode_item
from runner.net.frames import encode_frame
from runner.net.messages import DEADLINE, deadline_header
from runner.net.planes import ACK_S, OWN, NatsRequests, RequestPlane, TcpRequests
from runner.net.records import Instance, Plane
from runner.net.responses import CallHome, ResponseStream, StreamBroken

CALL_HOME_S = 10.0
_LATE_S = ACK_S + CALL_HOME_S + 15.0
"""A broker that was away delivers old requests; clocks differ by some seconds."""


class NetClient:
    """Shared by all models of an ingress. `host` is the address that workers call home to."""

    def __init__(self, host: str, nats: str) -> None:
        self._home = CallHome(host)
        self._planes: dict[Plane, RequestPlane] = {"tcp": TcpRequests(), "nats_tcp": NatsRequests(nats)}

    async def start(self) -> None:
        """Raises OSError when the address cannot be bound."""
        await self._home.start()

    async def open(
        self,
        instance: Instance,
        request_id: str,
        body: dict[str, Any],
        headers: Mapping[str, str],
        *,
        streams: set[ResponseStream] | None = None,
    ) -> ResponseStream:
        """Send a request; returns when the worker has called home and taken it. The caller closes the stream.

        The stream is in `streams` from the start, so that whoever watches a worker sees those that wait for it to call;
        the caller takes it out, unless this raises.

        `request_id` is for people. On the wire each attempt has an id of its own: a worker of Dynamo's fails when two
        live requests have the same one, be it the client's doing or that of an attempt that broke here and not there.
        `headers` are handed on.

        Raises Unreachable, Refused, TooLarge, StreamBroken, StreamRefused.
        """
        stream = self._home.expect(instance.codec)
        streams = set() if streams is None else streams
        streams.add(stream)
        request_id = f"{request_id}-{secrets.token_hex(6)}"
        control = {
            "id": request_id,
            "request_type": "single_in",
            "response_type": "many_out",
            "payload_codec": instance.codec,
            "connection_info": self._home.connection_info(stream, request_id),
        }
        frame = encode_frame(msgspec.json.encode(control), encode_item(instance.codec, body))
        headers = {"x-request-id": request_id, **headers, "request-id": request_id, OWN: "1"}
        if instance.plane == "nats_tcp":
            headers[DEADLINE] = deadline_header(_LATE_S)
        try:
            await self._planes[instance.plane].send(instance, frame, headers)
            await self._opened(stream)
        except BaseException:
            streams.discard(stream)
            stream.close()
            raise
        return stream

    async def _opened(self, stream: ResponseStream) -> None:
        try:
            await stream.opened(CALL_HOME_S)
        except TimeoutError:
            raise StreamBroken(
                f"it took the request and did not call home within {CALL_HOME_S:.0f} s; "
                f"it must reach this machine at {self._home.address} (--dyn-host)"
            ) from None

    async def probe(self, instance: Instance) -> str:
        """What is wrong with an instance, or nothing. Raises Unreachable."""
        return await self._planes[instance.plane].probe(instance)

    async def close(self) -> None:
        """Safe twice."""
        for plane in self._planes.values():
            await plane.close()
        await self._home.close()
