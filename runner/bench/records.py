"""The records of a measurement: what is asked (BenchRequest), what happened (Sample), what it adds up to (Point).

Times are seconds of one monotonic clock. Knows neither how requests are sent nor how results are shown.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec


class BenchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a load. `arrival_s` counts from the load's start; None in a closed loop."""

    prompt: str = ""
    messages: list[dict[str, Any]] | None = None
    """A whole conversation, instead of `prompt`; chat only."""
    max_tokens: int
    arrival_s: float | None = None


class Sample(msgspec.Struct, kw_only=True):
    """One request that ended, well or not. Filled while it runs."""

    start_s: float
    first_s: float | None = None
    """Arrival of the first text."""
    end_s: float = 0.0
    gaps_s: list[float] = []
    """Times between arrivals of text after the first; one arrival may carry several tokens."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    is_counted: bool = False
    """True: `output_tokens` is the server's own count; False: arrivals of text were counted."""
    error: str | None = None
    text: str = ""
    """Only if the target was told to keep it."""
    finish: str | None = None


class Target(Protocol):
    """What is measured."""

    async def run(self, request: BenchRequest) -> Sample:
        """Send one request and follow it to its end. Never raises for a failed request: `Sample.error` says why."""

    async def close(self) -> None:
        """Free connections or the engine. Safe twice."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and percentiles of one quantity, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One load, summed up."""

    load: str
    """Such as `8 at once` or `2.5/s`."""
    num_requests: int
    num_errors: int
    wall_s: float
    output_tokens: int
    prompt_tokens: int
    output_tokens_per_s: float
    requests_per_s: float
    ttft_ms: Spread | None
    """Time to first text."""
    tpot_ms: Spread | None
    """Time per output token after the first, one value a request."""
    itl_ms: Spread | None
    """Time between arrivals of text."""
    e2e_ms: Spread | None
    client_cpu_us_per_token: float
    """What the measuring itself cost (for an engine in this process: launcher and measuring together)."""
    is_counted: bool
    errors: dict[str, int] = {}
    """Message -> how often."""
    server: dict[str, float] = {}
    """What the server says of itself, or what the system says of its process."""
