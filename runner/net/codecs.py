"""The two codecs of bodies and items: JSON, and MessagePack where both sides know it."""

from __future__ import annotations

from typing import Any

import msgspec

ENCODERS = {"json": msgspec.json.Encoder().encode, "msgpack": msgspec.msgpack.Encoder().encode}
DECODERS = {"json": msgspec.json.Decoder().decode, "msgpack": msgspec.msgpack.Decoder().decode}


def decode_item(codec: str, body: bytes) -> Any:
    """A request's body. Raises ValueError (msgspec.DecodeError is one)."""
    try:
        return DECODERS[codec](body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def encode_item(codec: str, item: Any) -> bytes:
    """A request's body."""
    return ENCODERS[codec](item)
