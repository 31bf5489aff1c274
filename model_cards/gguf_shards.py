"""The files that one split GGUF model consists of (`NAME-00001-of-00003.gguf`).

Owns the naming rule of llama.cpp's gguf-split. Looks at names only; what the shards say of themselves is gguf.py's.
"""

from __future__ import annotations

import re
from pathlib import Path

from model_cards.errors import ModelFileError, ModelNotFound

_SHARD_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


def find_shards(path: Path) -> tuple[Path, tuple[Path, ...]]:
    """First shard and all shards of the model that `path` belongs to; (path, (path,)) where it is not split.

    Raises ModelFileError naming the shards that are missing.
    """
    match = _SHARD_NAME.match(path.name)
    if match is None or int(match["count"]) < 2:
        return path, (path,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count:
        raise ModelFileError(f"{path}: shard number {int(match['number'])} is not within 1 to {count}")
    if not path.exists():
        raise ModelNotFound(f"{path}: no such file")
    shards = tuple(path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        names = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise ModelFileError(f"{path}: {len(missing)} of {count} shards are missing in {path.parent}: {names}")
    return shards[0], shards
