"""Loads: prompts and arrival times, synthetic or from a file. The same seed gives the same load.

Owns lengths, prefixes, data sets and traces. Knows nothing of servers; a `CountTokens` function, where there is one,
makes lengths exact, else one short word is taken for one token.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from runner.bench.records import BenchRequest
from runner.errors import UsageError

CountTokens = Callable[[str], int]

_WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end member law car city community name president team minute idea body information back parent face others
level office door health person art war history party result change morning reason research girl guy moment air teacher
force education foot boy age policy music market sense nation plan college interest death experience effect use class
"""
WORDS = tuple(_WORDS.split())


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths in tokens. `prefix_len` of the `input_len` tokens are the same in every prompt."""

    input_len: int = 64
    output_len: int = 128
    prefix_len: int = 0


class Prompts:
    """Synthetic prompts: random words, so that no two share more than the wanted prefix."""

    def __init__(self, seed: int, count_tokens: CountTokens | None = None) -> None:
        self._rng = random.Random(seed)
        self._count = count_tokens
        self._prefixes: dict[int, str] = {}

    def make(self, shape: Shape) -> BenchRequest:
        """One request of that shape. Raises UsageError if the prefix is longer than the prompt."""
        if shape.prefix_len > shape.input_len:
            raise UsageError(f"--prefix-len {shape.prefix_len} is more than --input-len {shape.input_len}")
        if shape.prefix_len and shape.prefix_len not in self._prefixes:
            self._prefixes[shape.prefix_len] = self._text(shape.prefix_len)
        prefix = self._prefixes.get(shape.prefix_len, "")
        rest = shape.input_len - shape.prefix_len
        text = " ".join(filter(None, (prefix, self._text(rest) if rest else "")))
        return BenchRequest(prompt=text, max_tokens=shape.output_len)

    def _text(self, num_tokens: int) -> str:
        """Words that come to `num_tokens` tokens (never more, save for a word that is several tokens long)."""
        words = [self._rng.choice(WORDS) for _ in range(max(1, num_tokens))]
        if self._count is None:
            return " ".join(words)
        low, high = 1, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._count(" ".join(words[:middle])) <= num_tokens else (low, middle - 1)
        return " ".join(words[:low])


def read_dataset(path: Path, output_len: int) -> list[BenchRequest]:
    """Prompts of a JSONL file: `{"prompt": …}`, `{"text": …}` or `{"messages": [...]}`; `max_tokens` may be given too.

    Raises UsageError naming file and line.
    """
    requests = []
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
            prompt = row.get("prompt") or row.get("text") or ""
            messages = None if prompt else list(row["messages"])
            max_tokens = int(row.get("max_tokens") or output_len)
        except (ValueError, KeyError, TypeError, AttributeError):
            hint = 'each line needs "prompt", "text" or "messages"'
            raise UsageError(f"{path}, line {number}: not a prompt; {hint}") from None
        requests.append(BenchRequest(prompt=str(prompt), messages=messages, max_tokens=max_tokens))
    if not requests:
        raise UsageError(f"{path} holds no prompts")
    return requests


def read_trace(path: Path, prompts: Prompts, *, speed: float, limit: int | None) -> list[BenchRequest]:
    """Requests with arrival times out of a trace: Mooncake's JSONL or Azure's CSV. Prompts are synthetic.

    `speed` 2 replays twice as fast. Raises UsageError for a file that is neither.
    """
    rows = _csv_rows(path) if path.suffix == ".csv" else _jsonl_rows(path)
    requests: list[BenchRequest] = []
    first: float | None = None
    for time_s, input_len, output_len in rows:
        if limit is not None and len(requests) >= limit:
            break
        first = time_s if first is None else first
        made = prompts.make(Shape(input_len=max(1, input_len), output_len=max(1, output_len)))
        requests.append(msgspec.structs.replace(made, arrival_s=(time_s - first) / speed))
    if not requests:
        raise UsageError(f"{path} holds no requests")
    return requests


def arrivals(rate: float, *, is_poisson: bool, seed: int) -> Iterator[float]:
    """Endless arrival times in seconds, `rate` a second: a Poisson process, or evenly spaced."""
    rng, now = random.Random(seed), 0.0
    while True:
        yield now
        now += rng.expovariate(rate) if is_poisson else 1.0 / rate


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def _jsonl_rows(path: Path) -> Iterator[tuple[float, int, int]]:
    for number, line in enumerate(_lines(path), 1):
        try:
            row: dict[str, Any] = json.loads(line)
            yield row["timestamp"] / 1000.0, int(row["input_length"]), int(row["output_length"])
        except (ValueError, KeyError, TypeError):
            fields = "timestamp (ms), input_length, output_length"
            raise UsageError(f"{path}, line {number}: a trace line needs {fields}") from None


def _csv_rows(path: Path) -> Iterator[tuple[float, int, int]]:
    for number, row in enumerate(csv.DictReader(_lines(path)), 2):
        try:
            # datetime keeps six digits of the second; Azure writes seven.
            time = datetime.fromisoformat(row["TIMESTAMP"][:26])
            yield time.timestamp(), int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (ValueError, KeyError, TypeError):
            fields = "TIMESTAMP, ContextTokens, GeneratedTokens"
            raise UsageError(f"{path}, line {number}: a trace row needs {fields}") from None
