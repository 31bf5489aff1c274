"""ALiBi slopes (arXiv 2108.12409), as Baichuan, BLOOM, Falcon and MPT have them."""

from __future__ import annotations

import math


def alibi_slopes(num_heads: int, largest: float = 8.0) -> tuple[float, ...]:
    """A geometric sequence down to 2 ** -largest; for head counts between powers of two, every other slope of the next
    power follows."""
    power = 2 ** math.floor(math.log2(num_heads))
    base, between = 2.0 ** (-largest / power), 2.0 ** (-largest / 2 / power)
    slopes = [base ** (index + 1) for index in range(power)]
    return tuple(slopes + [between ** (2 * index + 1) for index in range(num_heads - power)])
