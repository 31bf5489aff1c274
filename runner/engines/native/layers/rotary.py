"""RopeTable: cos and sin of every position, once per RopeSpec. Formulas of transformers.modeling_rope_utils 5.24.

`dynamic` (NTK) and `longrope` depend on how long a sequence gets. Here they depend on the engine's context alone, so
that a token's K is the same in every batch: with a context
longer than trained, all sequences use the long factors (as in vLLM).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runner.engines.native.kernels.ops import Rotation
from runner.engines.native.spec import RopeSpec
from runner.errors import EngineStartFailed


class RopeTable:
    """[length, dim] float32: cos of dim/2 frequencies, then sin."""

    def __init__(self, spec: RopeSpec, length: int, device: torch.device | str) -> None:
        # on the CPU and in float32 whatever the device, so that tables are equal everywhere
        frequencies, factor = rope_frequencies(spec, length)
        angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies[None]
        self.table = (torch.cat([angles.cos(), angles.sin()], -1) * factor).to(device)
        self.is_interleaved = spec.interleaved

    def rotation(self, positions: Tensor) -> Rotation:
        """The factors of a step's tokens."""
        return Rotation(self.table.index_select(0, positions), self.is_interleaved)


def rope_frequencies(spec: RopeSpec, length: int) -> tuple[Tensor, float]:
    """Inverse frequencies [dim/2] float32 and the factor of cos and sin, for contexts up to `length`."""
    scaling = spec.scaling or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in _KINDS:
        raise EngineStartFailed(
            f"rotary scaling {kind!r} is unknown; known are {', '.join(sorted(_KINDS))}",
            hint="take rope_scaling out of config.json, or use another engine",
        )
    return _KINDS[kind](spec, scaling, length)


def _default(spec: RopeSpec, scaling: dict[str, Any], length: int) -> tuple[Tensor, float]:
    return 1.0 / _powers(spec, spec.theta), 1.0


def _powers(spec: RopeSpec, theta: float) -> Tensor:
    return theta ** (torch.arange(0, spec.dim, 2, dtype=torch.int64).float() / spec.dim)


def _linear(spec: RopeSpec, scaling: dict[str, Any], length: int) -> tuple[Tensor, float]:
    return 1.0 / _powers(spec, spec.theta) / scaling["factor"], 1.0


def _dynamic(spec: RopeSpec, scaling: dict[str, Any], length: int) -> tuple[Tensor, float]:
    factor, trained = scaling["factor"], spec.max_position
    stretch = factor * max(length, trained) / trained - (factor - 1)
    return 1.0 / _powers(spec, spec.theta * stretch ** (spec.dim / (spec.dim - 2))), 1.0


def _llama3(spec: RopeSpec, scaling: dict[str, Any], length: int) -> tuple[Tensor, float]:
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    trained = _original(spec, scaling)
    plain = 1.0 / _powers(spec, spec.theta)
    wavelength = 2 * math.pi / plain
    smooth = (trained / wavelength - low) / (high - low)
    blended = (1 - smooth) * plain / factor + smooth * plain
    is_medium = (wavelength >= trained / high) & (wavelength <= trained / low)
    return torch.where(is_medium, blended, torch.where(wavelength > trained / low, plain / factor, plain)), 1.0


def _original(spec: RopeSpec, scaling: dict[str, Any]) -> int:
    return int(scaling.get("original_max_position_embeddings") or spec.max_position)


def _yarn(spec: RopeSpec, scaling: dict[str, Any], length: int) -> tuple[Tensor, float]:
    """YaRN, arXiv 2309.00071."""
    trained = _original(spec, scaling)
    factor = scaling.get("factor") or spec.max_position / trained
    powers = _powers(spec, spec.theta)
    low, high = _yarn_range(spec, scaling, trained)
    ramp = ((torch.arange(spec.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return (1.0 / (factor * powers)) * ramp + (1.0 / powers) * (1 - ramp), _yarn_factor(scaling, factor)


def _yarn_range(spec: RopeSpec, scaling: dict[str, Any], trained: int) -> tuple[float, float]:
    def dimension(turns: float) -> float:
        return spec.dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(spec.theta))

    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    return low, high if high != low else high + 0.001


def _yarn_factor(scaling: dict[str, Any], factor: float) -> float:
    def magnitude(scale: float, mscale: float = 1.0) -> float:
        return 0.1 * mscale * math.log(scale) + 1.0 if scale > 1 else 1.0

    stated = scaling.get("attention_factor")
    if stated is not None:
        return float(stated)
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and all_dim:
        return magnitude(factor, mscale) / magnitude(factor, all_dim)
    return magnitude(factor)


def _longrope(spec: RopeSpec, scaling: dict[str, Any], length: int) -> tuple[Tensor, float]:
    """LongRoPE, arXiv 2402.13753 (Phi-3)."""
    trained = _original(spec, scaling)
    factor = scaling.get("factor") or spec.max_position / trained
    stated = scaling.get("attention_factor")
    if stated is None:
        stated = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1.0 else 1.0
    stretch = torch.tensor(scaling["long_factor" if length > trained else "short_factor"], dtype=torch.float32)
    return 1.0 / (stretch * _powers(spec, spec.theta)), float(stated)


_KINDS: dict[str, Callable[[RopeSpec, dict[str, Any], int], tuple[Tensor, float]]] = {
    "default": _default, "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn,
    "longrope": _longrope, "su": _longrope,
}  # fmt: skip
